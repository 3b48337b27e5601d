"""Three times the load that a server can carry: who is let in is served as at full load."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, closed_loop, open_loop
from tests.support.scenarios.servers import server, target, upload

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

SECONDS = scaled(90, 15)  # of each load
MASKS = {f"m{i}": i for i in range(8)}
TOKENS = 16
SLOTS = 16
# As docs/operating/operate.md has it where others can take over: a quarter as many wait as run.
PLACES = SLOTS * 5 // 4
FLAGS = ("--max-num-seqs", str(SLOTS), "--max-num-queued-reqs", str(PLACES))


def test_overload(smol, valkey, admin_key, tmp_path):
    figures = Figures("overload")
    chance = random.Random(4)
    with server(smol, tmp_path, valkey.url, admin_key, *FLAGS) as served:
        upload(served, smol, MASKS)
        to, names = target(served), list(MASKS)

        def ask(number: int):
            prompt = f"Number {number} of many is"
            return to.ask(names[number % len(names)], prompt=prompt, tokens=TOKENS)

        async def load(rate: float) -> list[Answer]:
            count = max(20, round(rate * SECONDS))
            return await open_loop(ask, count, lambda: chance.expovariate(rate))

        async def run() -> tuple[float, list[Answer], list[Answer], list[Answer]]:
            # What it carries where no slot is ever free.
            await closed_loop(ask, 2 * SLOTS, PLACES)
            began, count = time.monotonic(), scaled(320, 4 * SLOTS)
            assert all(a.ok for a in await closed_loop(ask, count, PLACES))
            rate = count / (time.monotonic() - began)
            half = await load(rate / 2)
            full = await load(rate)
            over = await load(3 * rate)
            return rate, half, full, over

        rate, half, full, over = asyncio.run(run())
        assert asyncio.run(to.get("/readyz"))[0] == 200
    size = f"{rate:.1f} requests a second are full load, {SECONDS} s each"
    usual, now = (percentile([a.ttft_s for a in x if a.ok], 99) for x in (full, over))
    at_half = percentile([a.ttft_s for a in half if a.ok], 99)
    note = f"{now:.2f} s against {usual:.2f} s; {at_half:.2f} s at half load"
    figures.record("ttft_p99_ratio", now / usual, "ratio", "<= 1.5", size=size, note=note)
    refused = [a for a in over if not a.ok]
    odd = [a for a in refused if a.status not in (429, 503) or not a.retry_after]
    print(*odd[:5], sep="\n")
    figures.record("refused", 100 * len(refused) / len(over), "%", size=size)
    figures.record("refused_otherwise", len(odd), "requests", "== 0", size=size)
    admitted = [a for a in over if a.ok]
    good = len(admitted) / (max(a.began + a.total_s for a in over) - min(a.began for a in over))
    figures.record("goodput", good / rate, "of full load", ">= 0.85", size=size)
    at_full = sum(not a.ok for a in full)
    figures.record("refused_at_full_load", 100 * at_full / len(full), "%", size=size)
    figures.end()
