"""Hostile bodies at a real server: probes are answered all the while, and memory comes back."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import httpx2
import psutil
import pytest
from bmt_server.api.request_limits import MAX_INPUT_ITEMS

from tests.support.requests.bodies import STOPPED_A_SERVER
from tests.support.requests.hostile import hostile_requests
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.servers import server

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

CONTEXT = 2048
BODIES = scaled(4000, 200)
AT_ONCE = 64
# The dearest one that is admitted: every item is valid, and the union's last members match.
ITEM = {"type": "shell_call", "call_id": "x", "action": {"commands": ["ls"]}}
DEAREST = {"input": [ITEM] * MAX_INPUT_ITEMS, "max_output_tokens": 1}


class Probes:
    """The longest answer of `/livez` and `/readyz` while the block runs."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.longest_s, self.asked = 0.0, 0

    async def __aenter__(self) -> Probes:
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            for path in ("/livez", "/readyz"):
                started = time.monotonic()
                answer = await self._client.get(path, timeout=120)
                self.longest_s = max(self.longest_s, time.monotonic() - started)
                self.asked += 1
                assert answer.status_code == 200, (path, answer.text)
            await asyncio.sleep(0.02)


def test_hostile_bodies(smol, valkey, admin_key, tmp_path):
    figures = Figures("hostile_body", "hostile_bodies")
    bodies = hostile_requests(CONTEXT, "smol", BODIES)
    flags = ("--max-model-len", str(CONTEXT))
    statuses: Counter[int] = Counter()
    broken: list[str] = []
    slowest: list[tuple[float, str]] = []

    async def run(url: str, process: psutil.Process) -> tuple[float, int, float]:
        limits = httpx2.Limits(max_connections=AT_ONCE + 8)
        key = {"Authorization": f"Bearer {admin_key}", "Content-Type": "application/json"}
        async with (
            httpx2.AsyncClient(base_url=url, headers=key, limits=limits, timeout=300) as client,
            # A client of its own, because the others' take all connections.
            httpx2.AsyncClient(base_url=url) as prober,
        ):

            async def send(path: str, name: str, data: bytes) -> None:
                started = time.monotonic()
                answer = await client.post(path, content=data)
                slowest.append((time.monotonic() - started, f"{path} {name}"))
                statuses[answer.status_code] += 1
                if answer.status_code >= 500:
                    broken.append(f"{answer.status_code} {path} {name} {answer.text[:200]}")

            dearest = json.dumps({"model": "smol", **DEAREST}).encode()
            await asyncio.gather(*(send("/v1/responses", "warm", dearest) for _ in range(8)))
            before = process.memory_info().rss
            async with Probes(prober) as probes:
                for path, more in STOPPED_A_SERVER:
                    data = json.dumps({"model": "smol", "max_tokens": 1, **more}).encode()
                    await send(path, "found", data)
                for path, body in bodies:
                    await send(path, body.name, body.data)
                print("one at a time:", f"{probes.longest_s:.3f} s", flush=True)
                jobs = [send("/v1/responses", "dearest", dearest) for _ in range(AT_ONCE)]
                await asyncio.gather(*jobs)
                large = sorted(bodies, key=lambda b: -len(b[1].data))[:AT_ONCE]
                await asyncio.gather(*(send(p, b.name, b.data) for p, b in large))
            await asyncio.sleep(2)
            grown = (process.memory_info().rss - before) / (1 << 20)
            return probes.longest_s, probes.asked, grown

    with server(smol, tmp_path, valkey.url, admin_key, *flags) as served:
        process = psutil.Process(served.process.pid)
        longest, asked, grown = asyncio.run(run(served.url, process))
    total = sum(statuses.values())
    size = f"{total} bodies, {2 * AT_ONCE} of them {AT_ONCE} at once; {asked} probes; context "
    size += f"{CONTEXT}; " + ", ".join(f"{n} of {s}" for s, n in sorted(statuses.items()))
    slowest.sort(reverse=True)
    print(*slowest[:10], *broken[:30], sep="\n")
    figures.record("readyz_max_s", longest, "s", "<= 1", size=size)
    figures.record("answers_5xx", len(broken), "answers", "== 0", size=size)
    figures.record("memory_grown", grown, "MiB", "<= 300", size=size)
    figures.end()
