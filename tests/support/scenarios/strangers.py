"""Clients without a key next to an honest one, on real connections to a replica of no engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bmt_core
import httpx2
from bmt_server.registry.api_keys import make_key

from tests.support.replica import make_mask

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Stub:
    """A replica without an engine in a process of its own. key: an administrator's."""

    url: str
    key: str

    def client(self, connections: int) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx2.AsyncClient(base_url=self.url, limits=limits, timeout=60)


@contextmanager
def stub(registry: str, folder: Path) -> Iterator[Stub]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.children.replica_server", registry, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield Stub(f"http://127.0.0.1:{ready['port']}", ready["key"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def uploads_beside_strangers(
    to: Stub, strangers: int, uploads: int, every_s: float = 0.05
) -> tuple[Counter[int], Counter[int]]:
    """Statuses of the uploads, and of requests with made-up keys that never pause."""
    stop, seen, mine = asyncio.Event(), Counter[int](), Counter[int]()

    async def stranger(client: httpx2.AsyncClient) -> None:
        while not stop.is_set():
            headers = {"Authorization": f"Bearer {make_key(('infer',))}"}
            seen[(await client.get("/v1/models", headers=headers)).status_code] += 1

    async with to.client(strangers) as theirs, to.client(1) as ours:
        work = [asyncio.create_task(stranger(theirs)) for _ in range(strangers)]
        await asyncio.sleep(1)
        for i in range(uploads):
            answer = await ours.put(
                f"/v1/masks/m{i}",
                content=bmt_core.encode(make_mask(i)),
                headers={"Authorization": f"Bearer {to.key}"},
            )
            mine[answer.status_code] += 1
            await asyncio.sleep(every_s)
        stop.set()
        await asyncio.gather(*work)
    return mine, seen


async def first_requests(to: Stub, count: int) -> Counter[int]:
    """Statuses of requests for the base with one key, all at once and each on a connection."""
    headers = {"Authorization": f"Bearer {to.key}"}
    async with to.client(count) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json={"model": "tiny"}, headers=headers)
                for _ in range(count)
            )
        )
    return Counter(a.status_code for a in answers)
