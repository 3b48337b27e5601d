"""Base and masks side by side on one prompt: streamed by the page's script, or whole without it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bmt_server.console.calls import Call, Stream
from bmt_server.console.forms import read_fields, read_number
from bmt_server.console.page import HEADERS, page, render
from bmt_server.console.session import Visitor, console_state
from bmt_server.errors import ApiError, BadRequest

#: Models that one prompt goes to.
MAX_MODELS = 4
_DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class _Panel:
    """One model's answer, or its error. text: not streamed yet, of an empty page."""

    model: str
    text: str = ""
    error: str = ""


@page
async def show(request: Request, visitor: Visitor) -> Response:
    """The form, with the models that the query names."""
    chosen = request.query_params.getlist("model")[:MAX_MODELS]
    base = console_state(request).engine.base_names[0]
    models = [*dict.fromkeys([base, *(model[:512] for model in chosen)])][:MAX_MODELS]
    return await _page(request, visitor, {"models": "\n".join(models)}, [])


@page
async def send(request: Request, visitor: Visitor) -> Response:
    """All answers at once, for browsers without scripts."""
    fields: dict[str, str] = {}
    try:
        fields = await read_fields(request, visitor.csrf)
        bodies = [_body(model, fields) for model in _models(fields)]
    except ApiError as error:
        return await _page(request, visitor, fields, [], error)
    panels = await asyncio.gather(*(_ask(visitor, body) for body in bodies))
    return await _page(request, visitor, fields, list(panels))


@page
async def stream(request: Request, visitor: Visitor) -> Response:
    """One model's answer as the API streams it, for the page's script. Errors are lines of text."""
    try:
        fields = await read_fields(request, visitor.csrf)
        body = {**_body(fields.get("model", ""), fields), "stream": True}
        call = Call.of("POST", "/v1/chat/completions", json=body)
        answer = await visitor.api.stream(call)
    except ApiError as error:
        return PlainTextResponse(str(error), error.status, headers=HEADERS)
    return _Streamed(answer)


class _Streamed(StreamingResponse):
    """Events of an answer, whose request ends with the response, even one that never began."""

    def __init__(self, answer: Stream) -> None:
        super().__init__(answer, media_type="text/event-stream", headers=HEADERS)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.close()


async def _page(
    request: Request,
    visitor: Visitor,
    fields: dict[str, str],
    panels: list[_Panel],
    error: ApiError | None = None,
) -> Response:
    models = (await visitor.api.get("/v1/models"))["data"]
    return render(
        request,
        visitor,
        "compare.html",
        error=error,
        known=[model["id"] for model in models][:500],
        models=fields.get("models", ""),
        system=fields.get("system", ""),
        prompt=fields.get("prompt", ""),
        max_tokens=fields.get("max_tokens", str(_DEFAULT_TOKENS)),
        temperature=fields.get("temperature", "0"),
        panels=panels,
        max_models=MAX_MODELS,
    )


def _models(fields: dict[str, str]) -> list[str]:
    given = fields.get("models", "").replace(",", "\n").split("\n")
    models = [*dict.fromkeys(filter(None, (line.strip() for line in given)))]
    if not 1 <= len(models) <= MAX_MODELS:
        raise BadRequest(f"name 1 to {MAX_MODELS} models, one a line", param="models")
    return models


def _body(model: str, fields: dict[str, str]) -> dict[str, Any]:
    """Body of a chat. Raises BadRequest for figures that are none; the API checks the rest."""
    prompt, system = fields.get("prompt", ""), fields.get("system", "").strip()
    if not prompt.strip():
        raise BadRequest("enter a prompt", param="prompt")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    tokens = read_number(fields, "max_tokens", int)
    temperature = read_number(fields, "temperature", float)
    return {
        "model": model,
        "messages": messages,
        "max_tokens": _DEFAULT_TOKENS if tokens is None else tokens,
        "temperature": 0.0 if temperature is None else temperature,
    }


async def _ask(visitor: Visitor, body: dict[str, Any]) -> _Panel:
    call = Call.of("POST", "/v1/chat/completions", json=body)
    try:
        answer = (await visitor.api.send(call)).json()
        message = answer["choices"][0]["message"]
        return _Panel(str(answer.get("model") or body["model"]), str(message.get("content") or ""))
    except ApiError as error:
        return _Panel(body["model"], error=str(error))
    except (KeyError, IndexError, TypeError):
        return _Panel(body["model"], error="the answer has no text")
