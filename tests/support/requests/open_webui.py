"""Requests that Open WebUI sends to an OpenAI-compatible server, by our own words.

After its public source (open-webui/open-webui: `backend/open_webui/routers/openai.py` and
`src/lib/apis/openai/index.ts`, read in November 2026): its backend lists models, verifies a
connection, chats and has titles written; with a direct connection the browser sends the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

#: Origin of the page, for direct connections.
PAGE = "http://chat.example.org"
_USER = {
    "X-OpenWebUI-User-Name": "Zo%C3%AB Example",
    "X-OpenWebUI-User-Id": "5f0c1e1e-0000-4000-8000-000000000000",
    "X-OpenWebUI-User-Email": "zoe@example.org",
    "X-OpenWebUI-User-Role": "user",
}
_JSON = {"Content-Type": "application/json"}
_SYSTEM = {"role": "system", "content": "Answer briefly."}
_QUESTION = {"role": "user", "content": "Name a color."}


@dataclass(frozen=True)
class WebuiCall:
    """One request. path: after the connection's URL, which ends with `/v1`."""

    what: str
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None = None
    streams: bool = field(default=False)


def calls(key: str, model: str) -> Iterator[WebuiCall]:
    """Requests of the backend with `key` for `model`, and the browser's with their preflights."""
    auth = {"Authorization": f"Bearer {key}"}
    yield WebuiCall("models", "GET", "/models", auth | _USER)
    yield WebuiCall("verification", "GET", "/models", auth | _JSON | _USER)
    headers = auth | _JSON | _USER | {"X-OpenWebUI-Chat-Id": "c-1"}
    chat = _chat(model)
    yield WebuiCall("chat", "POST", "/chat/completions", headers, chat, streams=True)
    plain = {**chat, "stream": False}
    del plain["stream_options"]
    yield WebuiCall("chat without a stream", "POST", "/chat/completions", headers, plain)
    title = {
        "model": model,
        "messages": [{"role": "user", "content": "Write a title for: Name a color."}],
        "stream": False,
        "max_completion_tokens": 12,
    }
    yield WebuiCall("title", "POST", "/chat/completions", headers, title)
    parts = {
        "role": "user",
        "content": [
            {"type": "text", "text": "Name a color.", "cache_control": {"type": "ephemeral"}}
        ],
    }
    extra = {**chat, "messages": [_SYSTEM, parts], "reasoning": {"effort": "low"}}
    yield WebuiCall("fields of others", "POST", "/chat/completions", headers, extra, streams=True)
    page = {"Origin": PAGE, "Referer": f"{PAGE}/", "Sec-Fetch-Mode": "cors"}
    for method, path, body in (("GET", "/models", None), ("POST", "/chat/completions", chat)):
        asked = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        yield WebuiCall("preflight", "OPTIONS", path, page | asked)
        yield WebuiCall("direct", method, path, page | auth | _JSON, body, streams=body is not None)


def replay(url: str, key: str, model: str, answered: str, allowed: str) -> None:
    """Send all calls to a real server, whose answers are whole and name the version.

    url: of the server, without `/v1`. allowed: the header that lets the page read, empty for none.
    """
    for call in calls(key, model):
        answer = httpx2.request(
            call.method, f"{url}/v1{call.path}", headers=call.headers, json=call.body, timeout=120
        )
        page = "Origin" in call.headers
        if page:
            assert answer.headers.get("access-control-allow-origin", "") == allowed, call.what
        refused = page and not allowed and call.method == "OPTIONS"
        assert answer.status_code == (400 if refused else 200), (call.what, answer.text)
        if call.streams:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
            assert events[-1] == "[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            assert {chunk["model"] for chunk in chunks} == {answered}
            assert chunks[-1]["usage"]["completion_tokens"] > 0
        elif call.body is not None:
            assert answer.json()["model"] == answered
            assert answer.json()["choices"][0]["message"]["content"]
        elif call.method == "GET":
            assert model.split(":")[0] in {m["id"] for m in answer.json()["data"]}


def _chat(model: str) -> dict[str, Any]:
    """A chat with every parameter that a user may set there."""
    return {
        "stream": True,
        "model": model,
        "messages": [_SYSTEM, _QUESTION],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 12,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "seed": 7,
        "stop": ["###"],
        "logit_bias": {"5": -1},
        "stream_options": {"include_usage": True},
    }
