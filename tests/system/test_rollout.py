"""Two replicas are replaced one after the other under load, as a Deployment does it."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, Target, closed_loop, open_loop
from tests.support.scenarios.proxy import Balancer
from tests.support.scenarios.servers import SEVERAL, start, target, upload
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

REQUESTS = scaled(2000, 100)
MASKS = {f"m{i}": i for i in range(8)}
TOKENS = 8
# What the chart waits for routers to see that a pod is going; scaled down, for here they see it.
NOTICE_S = 2.0


def test_rolling_restart(smol, valkey, admin_key, tmp_path):
    figures = Figures("rolling_restart")
    serial = iter(range(100))

    def begin(wait: bool) -> Served:
        folder = tmp_path / str(next(serial))
        return start(smol, folder, valkey.url, admin_key, env=SEVERAL, wait=wait)

    replicas = [begin(False), begin(False)]
    balancer = None
    try:
        for one in replicas:
            one.wait()
        upload(replicas[0], smol, MASKS)
        balancer = Balancer([r.port for r in replicas])
        to, names = Target(balancer.port, admin_key), list(MASKS)

        def ask(number: int):
            # Answers of many lengths, so that some stream at every moment.
            tokens = TOKENS + (number * 7) % 25
            prompt = f"Number {number} is"
            return to.ask(names[number % len(names)], prompt=prompt, tokens=tokens)

        async def capacity() -> float:
            """Requests a second that one replica answers: half of both's, and what is left of
            both while one is replaced."""
            alone = target(replicas[0])
            await closed_loop(lambda i: alone.ask(names[i % 8], tokens=TOKENS + 12), 16, 8)
            began = time.monotonic()
            count = scaled(100, 40)
            answers = await closed_loop(
                lambda i: alone.ask(names[i % 8], prompt=f"Number {i}", tokens=TOKENS + 12),
                count,
                16,
            )
            assert all(a.ok for a in answers)
            return count / (time.monotonic() - began)

        exits: list[int] = []

        async def roll(stop: asyncio.Event) -> None:
            """Each replica: out of the rotation, stopped, and replaced by a new one."""
            turn = 0
            while not stop.is_set() or turn < len(replicas):
                at, turn = turn % len(replicas), turn + 1
                old = replicas[at]
                balancer.targets = [r.port for r in replicas if r is not old]
                await asyncio.sleep(NOTICE_S)
                exits.append(await asyncio.to_thread(old.stop))
                replicas[at] = new = await asyncio.to_thread(begin, False)
                await asyncio.to_thread(new.wait)
                balancer.targets = [r.port for r in replicas]
                await asyncio.sleep(1)

        async def run() -> tuple[list[Answer], float]:
            # Both share the processors, so one's own speed is about that of both together.
            rate = await capacity() / 2
            stop, chance = asyncio.Event(), random.Random(3)
            rolling = asyncio.create_task(roll(stop))
            answers = await open_loop(ask, REQUESTS, lambda: chance.expovariate(rate))
            stop.set()
            await rolling
            return answers, rate

        answers, rate = asyncio.run(run())
    finally:
        for one in replicas:
            one.stop()
        if balancer is not None:
            balancer.close()
    size = f"{REQUESTS} requests at {rate:.1f} a second, {len(exits)} replicas replaced"
    failed = [a for a in answers if not a.ok]
    print(*failed[:10], sep="\n")
    cut = sum(a.status == 200 for a in failed)
    figures.record("failed", len(failed), "requests", "== 0", size=size)
    figures.record("streams_broken", cut, "streams", "== 0", size=size)
    figures.record("replaced", len(exits), "replicas", ">= 2", size=size)
    figures.record("exits_not_0", sum(e != 0 for e in exits), "replicas", "== 0", size=size)
    figures.record("ttft_p99", percentile([a.ttft_s for a in answers if a.ok], 99), "s", size=size)
    figures.end()
