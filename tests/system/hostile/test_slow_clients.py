"""Clients that send half a head or body, or never read: closed in time, other clients served."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest

from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, Target, closed_loop
from tests.support.scenarios.servers import server, target, upload

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

CLIENTS = scaled(10_000, 100)
PER_S = scaled(1000, 50)
REQUESTS = scaled(240, 40)


async def closed_after(port: int, data: bytes, seconds: list[float], delay: float) -> None:
    """After the delay, send this and no more; how long until the server ends the connection."""
    await asyncio.sleep(delay)
    start = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        while await reader.read(65536):
            pass
    except OSError:
        pass
    else:
        writer.close()
    seconds.append(time.monotonic() - start)


def request(to: Target, length: int, path: str = "/v1/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {to.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_slow_clients(smol, valkey, admin_key, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CLIENTS + 1000), hard))
    figures = Figures("slow_clients")
    try:
        with server(smol, tmp_path, valkey.url, admin_key) as served:
            upload(served, smol, {"m": 0})
            asyncio.run(scenario(figures, target(served)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    figures.end()


async def scenario(figures: Figures, to: Target) -> None:
    async def window(requests: int = REQUESTS) -> list[Answer]:
        answers = await closed_loop(
            lambda i: to.ask("m", prompt=f"Number {i} is", tokens=4), requests, 4
        )
        assert all(a.ok for a in answers), [a for a in answers if not a.ok][:3]
        return answers

    await window()
    before = await window()
    start, heads = time.monotonic(), list[float]()
    bodies: list[float] = []
    half, body = request(to, 9)[:-30], request(to, 9)
    slow = [
        closed_after(to.port, *((body, bodies) if i % 2 else (half, heads)), i / PER_S)
        for i in range(CLIENTS)
    ]
    tasks = [asyncio.create_task(work) for work in slow]
    arriving = await window(REQUESTS // 2)
    # Connections are made and ended by the thousand until here, on the engine's own processors.
    await asyncio.sleep(max(0.0, start + CLIENTS / PER_S + 12 - time.monotonic()))
    held = sum(not t.done() for t in tasks)
    during = await window()
    still = sum(not t.done() for t in tasks)
    await asyncio.gather(*tasks)
    after = await window()
    size = f"{CLIENTS} slow clients"
    figures.record("head_closed_in", max(heads), "s", "<= 15", size=size)
    figures.record("body_closed_in", max(bodies), "s", "<= 65", size=size)
    figures.record("body_waited_for", min(bodies), "s", ">= 55", size=size)
    without = [a.ttft_s for a in (*before, *after)]
    usual, usual_middle = (percentile(without, q) for q in (99, 50))
    for name, answers, bound, what in (
        ("arriving", arriving, "", f"{size}, {PER_S} of them a second"),
        ("ttft", during, "<= 1.1", f"{held} slow clients, {still} at the end"),
    ):
        now, middle = (percentile([a.ttft_s for a in answers], q) for q in (99, 50))
        note = f"{now * 1e3:.0f} ms against {usual * 1e3:.0f} ms; p50 {middle * 1e3:.0f} ms "
        note += f"against {usual_middle * 1e3:.0f} ms"
        figures.record(f"{name}_p99_ratio", now / usual, "ratio", bound, size=what, note=note)
    await never_reads(figures, to)


async def never_reads(figures: Figures, to: Target) -> None:
    """Long streams that are not read hold neither a slot nor a mask for longer than they run."""
    count, tokens = scaled(32, 8), 300
    connections = []
    for _ in range(count):
        body = (
            b'{"model": "m", "prompt": "x", "max_tokens": %d, "ignore_eos": true, "stream": true}'
        ) % tokens
        reader, writer = await asyncio.open_connection("127.0.0.1", to.port, limit=1)
        writer.write(request(to, len(body)) + body)
        connections.append(writer)
    start = time.monotonic()
    while await to.figure("vllm:num_requests_running") < count:
        await asyncio.sleep(0.1)
    while await to.figure("bmt_mask_holds"):
        assert time.monotonic() - start < 180
        await asyncio.sleep(0.2)
    seconds = time.monotonic() - start
    figures.record(
        "unread_streams_ended_in", seconds, "s", size=f"{count} streams, {tokens} tokens"
    )
    for writer in connections:
        writer.transport.abort()
