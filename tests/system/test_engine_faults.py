"""Engine killed or hung, clients that vanish: every client gets an error in time."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.load import Answer, Target, read_head, until
from tests.support.scenarios.servers import server, start, target, upload
from tests.support.served import engine_of

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

STREAMS = scaled(32, 8)
CLIENTS = scaled(200, 20)
MASKS = {f"m{i}": i for i in range(4)}
# Keys and values of all clients' streams: on the CPU a block is of 128 tokens, 6 MB.
ROOM = {"VLLM_CPU_KVCACHE_SPACE": "6"}


async def streams(to: Target, count: int, tokens: int) -> list[asyncio.Task[Answer]]:
    """So many streams of masks, all of which have begun."""
    names = [*MASKS, "smol"]
    tasks = [
        asyncio.create_task(to.ask(names[i % len(names)], tokens=tokens)) for i in range(count)
    ]

    async def all_run() -> bool:
        return await to.figure("vllm:num_requests_running") >= count

    await until(all_run, 60)
    await asyncio.sleep(2)
    return tasks


def test_engine_killed(smol, valkey, admin_key, tmp_path):
    figures = Figures("engine_killed")
    served = start(smol, tmp_path, valkey.url, admin_key)
    upload(served, smol, MASKS)
    to = target(served)

    async def run() -> None:
        tasks = await streams(to, STREAMS, 400)
        assert not any(t.done() for t in tasks), "streams must outlive the engine"
        os.kill(engine_of(served), signal.SIGKILL)
        killed = time.monotonic()

        async def not_ready() -> bool:
            return (await to.get("/readyz", 1))[0] != 200

        async def ends() -> list[float]:
            answers = await asyncio.gather(*tasks)
            ended = sum(a.ended == "error" for a in answers)
            size = f"{STREAMS} streams"
            figures.record("streams_told", ended, "streams", f"== {STREAMS}", size=size)
            return [a.began + a.total_s - killed for a in answers]

        waiting = asyncio.create_task(ends())
        seconds = await until(not_ready, 30)
        figures.record("not_ready_in", seconds, "s", "<= 6", size="once")
        figures.record(
            "streams_told_in", max(await waiting), "s", "<= 6", size=f"{STREAMS} streams"
        )

    try:
        asyncio.run(run())
        began = time.monotonic()
        code = served.process.wait(60)
        figures.record("exit_code", code, "code", ">= 1", size="once")
        figures.record("ended_after", time.monotonic() - began, "s", "<= 15", size="once")
    finally:
        served.stop()
    figures.end()


def test_engine_hung(smol, valkey, admin_key, tmp_path):
    figures = Figures("engine_hung")
    with server(smol, tmp_path, valkey.url, admin_key) as served:
        upload(served, smol, MASKS)
        to = target(served)

        async def run() -> None:
            tasks = await streams(to, 4, 300)
            engine = engine_of(served)
            os.kill(engine, signal.SIGSTOP)
            try:

                async def not_live() -> bool:
                    return (await to.get("/livez", 2))[0] == 503

                seconds = await until(not_live, 90)
            finally:
                os.kill(engine, signal.SIGCONT)
            figures.record("not_live_in", seconds, "s", "<= 60", size="once, --hang-seconds 50")
            answers = await asyncio.gather(*tasks)
            assert all(a.ok for a in answers), answers
            assert (await to.get("/livez"))[0] == 200

        asyncio.run(run())
    figures.end()


def test_clients_vanish(smol, valkey, admin_key, tmp_path):
    figures = Figures("clients_vanish")
    flags = ("--max-num-seqs", "256")
    with server(smol, tmp_path, valkey.url, admin_key, *flags, env=ROOM) as served:
        upload(served, smol, MASKS)
        to = target(served)

        async def run() -> None:
            names = list(MASKS)

            async def begin(number: int):
                body = {
                    "model": names[number % len(names)],
                    "prompt": "The sun",
                    "max_tokens": 400,
                    "ignore_eos": True,
                    "stream": True,
                }
                reader, writer = await to.send("POST", "/v1/completions", body)
                status, _ = await read_head(reader)
                assert status == 200
                await reader.readline()
                return writer

            connections = await asyncio.gather(*(begin(i) for i in range(CLIENTS)))
            running = await to.figure("vllm:num_requests_running")
            held = await to.figure("bmt_mask_holds")
            assert held >= CLIENTS, held
            gone = time.monotonic()
            for writer in connections:
                writer.transport.abort()

            async def none_runs() -> bool:
                return await to.figure("vllm:num_requests_running") == 0

            async def none_is_held() -> bool:
                return await to.figure("bmt_mask_holds") == 0

            size = f"{CLIENTS} streams, {running:.0f} running"
            await until(none_is_held, 60)
            figures.record("holds_at_0_in", time.monotonic() - gone, "s", "<= 2", size=size)
            await until(none_runs, 60)
            figures.record("running_at_0_in", time.monotonic() - gone, "s", "<= 2", size=size)
            assert (await to.ask("m0")).ok

        asyncio.run(run())
    figures.end()
