"""One replica without an engine: the API's real parts on a real Valkey, with a fake engine alone.

Its twin with a real engine: tests/server/serving/test_serve.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bmt_core
import httpx2
from bmt_server.api.app_state import AppState
from bmt_server.api.middleware import RequestMiddleware
from bmt_server.api.routes.router import build_router
from bmt_server.console.router import build_console
from bmt_server.settings import Settings
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry

from tests.support.fake_engine import FakeEngine
from tests.support.masks import BASE, gate_names, random_mask

GATES = gate_names(2, (64, 48))


def make_mask(
    seed: int = 0, base: bmt_core.Base = BASE, zeros: int = 40, **metadata: Any
) -> bmt_core.Mask:
    """A mask that the replica's base takes."""
    return random_mask(GATES, seed, zeros=zeros, base=base, **metadata)


@dataclass
class Api:
    """One replica, with a client of each kind of key."""

    state: AppState
    engine: FakeEngine
    app: FastAPI
    keys: dict[str, str]
    hold: asyncio.Event
    calls: list[str]
    registry: CollectorRegistry

    def replace(self, **parts: Any) -> None:
        """Replace parts of the state that later requests see."""
        self.state = self.app.state.bmt = replace(self.state, **parts)

    def client(self, key: str = "admin") -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.keys[key]}"} if key else {}
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def put(
        self, name: str, mask: Any, key: str = "admin", **options: Any
    ) -> httpx2.Response:
        data = mask if isinstance(mask, bytes) else bmt_core.encode(mask)
        async with self.client(key) as client:
            return await client.put(f"/v1/masks/{name}", content=data, **options)

    async def ask(self, model: str, key: str = "admin") -> httpx2.Response:
        async with self.client(key) as client:
            return await client.post("/v1/chat/completions", json={"model": model})


def settings_of(url: str, folder: Path, **changes: Any) -> Settings:
    """Settings of a server of the tiny base."""
    settings = {
        "model_id": "tiny",
        "model_path": "tiny",
        "fingerprint": BASE.fingerprint,
        "gates": GATES,
        "registry_url": url,
        "cache_dir": str(folder),
        "stats_dir": str(folder),
        "max_sparsity": 0.05,
    }
    return Settings(**{**settings, **changes})


@asynccontextmanager
async def replica(
    url: str,
    folder: Path,
    keys: dict[str, str] | None = None,
    *,
    chat: Callable[[Request], Awaitable[Any]] | None = None,
    **changes: Any,
) -> AsyncIterator[Api]:
    """One replica. chat: its route of chats, if not that of `calls`. changes: of its settings."""
    settings = settings_of(url, folder, **changes)
    engine, hold = FakeEngine(folder), asyncio.Event()
    registry = CollectorRegistry()
    state = await AppState.create(settings, engine, registry, removal_delay_s=0.05)
    app = FastAPI()
    app.state.bmt = state

    calls: list[str] = []

    async def echo(request: Request) -> Any:
        body = await request.json()
        calls.append(body["model"])
        if not body.get("stream"):
            return {"model": body["model"]}

        async def pieces() -> AsyncIterator[bytes]:
            yield json.dumps({"model": body["model"]}).encode()
            await hold.wait()

        return StreamingResponse(pieces())

    async def answer(request: Request) -> Any:
        return await (chat or echo)(request)

    app.post("/v1/chat/completions")(answer)
    app.post("/tokenize")(echo)
    for path in ("/pause", "/collective_rpc", "/invocations"):
        app.post(path)(echo)
    app.include_router(build_router())
    app.include_router(build_console())
    app.add_middleware(RequestMiddleware)
    if state.batch_runner is not None:
        state.batch_runner.start(app)
    try:
        yield Api(state, engine, app, keys or {}, hold, calls, registry)
    finally:
        await state.close()
