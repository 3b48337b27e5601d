"""A server for rollouts without an engine: router, middleware and registry are the real ones.

Its `/v1/completions` is a stub: its tokens follow from the mask, the prompt and the seed alone, as
those of a real engine do (its twin: tests/system/test_rollouts.py). A test may end it, start it
again, and let it answer with faults.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bmt_core
import uvicorn
from bmt_server.api.app_state import AppState
from bmt_server.api.middleware import RequestMiddleware
from bmt_server.api.routes.router import build_router
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.settings import Settings
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from tests.support.fake_engine import FakeEngine
from tests.support.http.ports import free_port

Fault = Callable[[Mapping[str, Any]], JSONResponse | None]


class RolloutServer:
    """A bmt-server of a checkpoint, on a port that stays.

    registry: of its masks and keys; context: tokens; changes: of its settings. `asked` has the
    body of each completion request. faults: each is called with the next request's body, in a
    thread, and answers in the stub's place unless it returns None. `held`: answers wait while it
    is set.
    """

    def __init__(
        self, model: Path, folder: Path, registry: str, *, context: int = 512, **changes: Any
    ) -> None:
        self.port, self.registry = free_port(), registry
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.held = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.context = folder, context
        self.settings: dict[str, Any] = {
            "model_id": "tiny",
            "model_path": str(model),
            "fingerprint": bmt_core.fingerprint(model),
            "gates": bmt_core.geometry(model),
            "registry_url": registry,
            "cache_dir": str(folder),
            "stats_dir": str(folder),
            **changes,
        }
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def key(self, *scopes: str) -> str:
        """A new key."""

        async def make() -> str:
            store = RegistryConnection(self.registry)
            try:
                made = await ApiKeyStore(store).create(scopes)
                assert made is not None
                return made[0]
            finally:
                await store.close()

        return asyncio.run(make())

    def start(self) -> None:
        engine = FakeEngine(self._folder, max_model_len=self.context)

        @asynccontextmanager
        async def lifespan(app: Any) -> Any:
            state = await AppState.create(Settings(**self.settings), engine, CollectorRegistry())
            app.state.bmt = state
            yield
            await state.close()

        app = FastAPI(lifespan=lifespan)
        app.include_router(build_router())
        app.post("/v1/completions")(self._complete)
        app.add_middleware(RequestMiddleware)
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            timeout_graceful_shutdown=0,
        )
        self._server = server = uvicorn.Server(config)
        self._thread = thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it as a kill does: streams break, requests get no answer."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(20)
            self._server = self._thread = None

    async def _complete(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.asked.append(body)
        if self.faults:
            fault = await asyncio.to_thread(self.faults.pop(0), body)
            if fault is not None:
                return fault
        while self.held.is_set():
            await asyncio.sleep(0.02)
        choices = [_choice(at, _tokens(body, at)) for at in range(int(body["n"]))]
        return JSONResponse({"model": body["model"], "choices": choices})


def refusal(status: int, code: str, message: str = "not now", **headers: str) -> Fault:
    """A fault: an error of the server's form."""
    body = {"error": {"message": message, "code": code}}
    return lambda asked: JSONResponse(body, status, headers=headers)


def cut(asked: Mapping[str, Any]) -> JSONResponse:
    """A fault: what a server that stops sends of answers that have not ended."""
    choices = [_choice(at, [5], "abort") for at in range(int(asked["n"]))]
    return JSONResponse({"model": asked["model"], "choices": choices})


def _choice(at: int, tokens: Sequence[int], reason: str = "length") -> dict[str, Any]:
    logprobs = {"token_logprobs": [-1.0] * len(tokens)}
    return {"index": at, "token_ids": tokens, "logprobs": logprobs, "finish_reason": reason}


def _tokens(body: Mapping[str, Any], at: int) -> list[int]:
    """Bytes of a digest, as tokens of `tests.support.tiny_model.byte_tokenizer`."""
    # The version alone: a run's name is random.
    version = body["model"].partition("@")[2]
    text = f"{version} {body['prompt']} {body['seed']} {at}"
    digest = hashlib.sha256(text.encode()).digest() * (1 + int(body["max_tokens"]) // 32)
    return [3 + byte for byte in digest[: int(body["max_tokens"])]]
