"""A replica that keeps files, and whose model answers as a test wants."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from bmt_server.api.batches import line_queue, run, runner
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from fastapi import Request
from fastapi.responses import JSONResponse

from tests.support.replica import replica

KEYS = {
    "infer": (("infer",), "default"),
    "upload": (("upload",), "default"),
    "admin": (("infer", "upload", "admin"), "default"),
    "other": (("infer", "upload", "admin"), "other"),
}


class Model:
    """The route of chats. answers: by the text of the message, a status and a code.

    hold: clear it, and answers wait; hold_after: it is cleared after so many questions. pause_s:
    time of an answer. asked: how often each text was asked.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.headers: dict[str, str] = {}  # of those answers
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: Counter[str] = Counter()
        self.hold_after = -1
        self.pause_s = 0.0
        self.running = self.most = 0

    async def __call__(self, request: Request):
        body = await request.json()
        word = body["messages"][-1]["content"]
        self.asked[word] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        if sum(self.asked.values()) == self.hold_after + 1:
            self.hold.clear()
        try:
            await self.hold.wait()
            await asyncio.sleep(self.pause_s)
        finally:
            self.running -= 1
        if word in self.answers:
            status, code = self.answers[word]
            return JSONResponse({"error": {"message": code, "code": code}}, status, self.headers)
        return {"model": body["model"], "word": word, "priority": body.get("priority")}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses of a test."""
    monkeypatch.setattr(runner, "POLL_S", 0.1)
    monkeypatch.setattr(runner, "_CLOSE_S", 1.0)
    monkeypatch.setattr(run, "_LOOK_S", 0.05)
    monkeypatch.setattr(run, "_FLUSH_S", 0.05)
    # The stub hears of no client that leaves, as vLLM's routes do.
    monkeypatch.setattr(line_queue, "_LEAVE_S", 0.1)


@pytest.fixture
async def keys(valkey):
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    made = {"": ""}
    for name, (scopes, tenant) in KEYS.items():
        created = await ApiKeyStore(store).create(scopes, tenant=tenant)
        assert created is not None
        made[name] = created[0]
    await store.close()
    return made


@pytest.fixture
def start(valkey, tmp_path, keys):
    """Start a replica with a model of the test's: `async with start("name") as api`."""

    def one(name, model, **changes):
        settings = {"files_url": (tmp_path / "files").as_uri(), "max_file_bytes": 1 << 20}
        return replica(valkey.url, tmp_path / name, keys, chat=model, **{**settings, **changes})

    return one


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def api(start, model):
    async with start("a", model) as one:
        yield one
