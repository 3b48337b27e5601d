"""One replica without an engine that measures its event loop, of the sources on PYTHONPATH.

Arguments: registry URL, cache folder. Prints a JSON line {"port", "key"} when ready. Each line on
stdin is `gc`, `fsck`, or empty; the answer is a JSON line: longest callback of the event loop since
the last line in CPU and wall milliseconds, CPU seconds of the process, resident MiB.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from pathlib import Path

import uvicorn
from bmt_server.registry.maintenance import check_consistency, collect_orphans

from tests.support.replica import replica

_longest = {"cpu_ms": 0.0, "wall_ms": 0.0}
_run = asyncio.Handle._run


def _measured(handle: asyncio.Handle) -> None:
    cpu, wall = time.thread_time(), time.monotonic()
    _run(handle)
    spent = {"cpu_ms": time.thread_time() - cpu, "wall_ms": time.monotonic() - wall}
    for unit, seconds in spent.items():
        _longest[unit] = max(_longest[unit], 1e3 * seconds)


def _rss_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def answer(state, wanted: str) -> None:
    began = time.monotonic()
    if wanted == "gc":
        await collect_orphans(state.registry)
    elif wanted == "fsck":
        await check_consistency(state.registry, deep=False)
    now = {**_longest, "cpu_s": time.process_time(), "rss_mib": _rss_mib()}
    print(json.dumps({**now, "took_s": time.monotonic() - began}), flush=True)
    _longest.update(cpu_ms=0.0, wall_ms=0.0)


async def main(url: str, folder: str) -> None:
    asyncio.Handle._run = _measured
    async with replica(url, Path(folder)) as api:
        state = api.app.state.bmt
        await state.replica.synced.wait()
        key, _ = await state.keys.create(("infer", "upload", "admin"))
        loop, tasks = asyncio.get_running_loop(), set()

        def asked() -> None:
            if line := sys.stdin.readline():
                tasks.add(asyncio.create_task(answer(state, line.strip())))

        loop.add_reader(sys.stdin, asked)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            print(json.dumps({"port": listening.getsockname()[1], "key": key}), flush=True)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
