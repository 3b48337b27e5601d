"""vLLM's own app without an engine, and a stub of its routes with its request models."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from bmt_server.api.isolation import current_salt
from bmt_server.api.permissions import find_route
from bmt_server.vllm_integration.versions.check import cli_arguments
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import TypeAdapter

from tests.support.requests.bodies import BodySchema

#: All routes of vLLM that clients reach; opening a further one is a decision.
REACHED_ROUTES = {
    "/health",
    "/metrics",
    "/ping",
    "/tokenize",
    "/detokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/responses",
    "/version",
}


def build_vllm_app(*, plugins: str = "bmt_routes") -> Any:
    """vLLM's app with the routes of every task, in developer mode."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import GENERATION_TASKS, POOLING_TASKS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("VLLM_PLUGINS", plugins)
        # A model that embeds: with it, all pooling routes are there besides the generating ones.
        embedder: Any = SimpleNamespace(get_pooling_task=lambda tasks: "embed")
        args = cli_arguments().make_arg_parser(FlexibleArgumentParser()).parse_args([])
        return build_app(args, (*GENERATION_TASKS, *POOLING_TASKS, "render"), embedder)


def request_models(app: Any) -> dict[str, Any]:
    """Path -> type of the body, of all allowed routes that name a model."""
    found = {}
    for route in app.routes:
        allowed = find_route("POST", getattr(route, "path", ""))
        if allowed is not None and allowed.names_model:
            found[route.path] = route.body_field.field_info.annotation
    return found


def body_schemas(models: dict[str, Any]) -> dict[str, BodySchema]:
    """Path -> JSON schema of the body."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            path: BodySchema(TypeAdapter(model).json_schema()) for path, model in models.items()
        }


@dataclass
class Call:
    """One call of a stub: the validated request, its headers, and the salt of engine calls."""

    path: str
    request: Any
    salt: str | None
    headers: frozenset[str]


class StubRoutes(list[Call]):
    """Calls of stub routes, and `answer`: a status and a body, or an error, for the next calls."""

    answer: tuple[int, Any] | None = None

    def respond(self, path: str, request: Any, headers: Iterable[str]) -> Any:
        """Keep the call, and answer it."""
        self.append(Call(path, request, current_salt(), frozenset(headers)))
        if self.answer is None:
            return {"object": path, "model": getattr(request, "model", None)}
        status, content = self.answer
        if isinstance(content, Exception):
            raise content
        if isinstance(content, str):
            return PlainTextResponse(content, status)
        return JSONResponse(content, status)


def add_stub_routes(app: FastAPI, models: dict[str, Any]) -> StubRoutes:
    """Add routes that validate as vLLM's do, with its error handlers."""
    from vllm.entrypoints.serve.exception_handling.register import (
        init_exception_handler,
    )

    calls = StubRoutes()

    def add(path: str, model: Any) -> None:
        async def handler(request: Any, raw_request: Request) -> Any:
            return calls.respond(path, request, raw_request.headers)

        handler.__annotations__ |= {"request": model, "raw_request": Request}
        app.post(path)(handler)

    init_exception_handler(app)
    app.state.args = Namespace(log_error_stack=False)
    for path, model in models.items():
        add(path, model)
    return calls
