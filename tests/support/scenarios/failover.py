"""Uploads through a failover: what is acknowledged must be there afterwards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import bmt_core

from tests.support.replica import Api, make_mask, replica
from tests.support.scenarios.nodes import HighlyAvailable
from tests.support.scenarios.registry import new_key


@dataclass
class Outcome:
    """acknowledged: mask digest by name; refused: status and code of each refusal."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: list[tuple[int, str]] = field(default_factory=list)
    elected_s: float = 0.0
    served_after_s: float = 0.0  # after the election
    lost: list[str] = field(default_factory=list)


async def through_failover(
    available: HighlyAvailable, folder: Path, *, writers: int, before_s: float
) -> Outcome:
    """Upload without a pause from `writers` writers, kill the primary, wait for the next one."""
    outcome, stop = Outcome(), asyncio.Event()
    keys = {"admin": await new_key(available.url)}
    async with replica(available.url, folder, keys, registry_replicas=1) as api:
        work = [asyncio.create_task(_write(api, i, outcome, stop)) for i in range(writers)]
        async with asyncio.timeout(30):
            while len(outcome.acknowledged) < 2 * writers:
                await asyncio.sleep(0.05)
        await asyncio.sleep(before_s)
        primary = available.primary
        killed = time.monotonic()
        primary.kill()
        elected = await asyncio.to_thread(available.elected, primary.port)
        outcome.elected_s = elected - killed
        # As an orchestrator does: it comes back as a replica, which a shard of two needs.
        primary.start(wait=False)
        seen = len(outcome.acknowledged)
        while len(outcome.acknowledged) <= seen:
            assert time.monotonic() - elected < 60, outcome.refused[-5:]
            await asyncio.sleep(0.01)
        outcome.served_after_s = time.monotonic() - elected
        await asyncio.sleep(before_s)
        stop.set()
        await asyncio.gather(*work)
        states = await api.state.registry.states([("default", n) for n in outcome.acknowledged])
        there = {s.name: s.latest for s in states}
        outcome.lost = [n for n, d in outcome.acknowledged.items() if there[n] != d]
        for state in states:
            for version in state.versions.values():
                if await api.state.registry.blob_size(version.file_digest) != version.bytes:
                    outcome.lost.append(version.model)
    return outcome


async def _write(api: Api, writer: int, outcome: Outcome, stop: asyncio.Event) -> None:
    """Upload one name after another, each until it is acknowledged."""
    count = 0
    while not stop.is_set():
        name, mask = f"w{writer}-{count}", make_mask(1000 * writer + count)
        data = bmt_core.encode(mask)
        while not stop.is_set():
            answer = await api.put(name, data)
            if answer.status_code in (200, 201):
                outcome.acknowledged[name] = mask.digest
                break
            outcome.refused.append((answer.status_code, answer.json()["error"]["code"]))
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in answer.text
            await asyncio.sleep(0.1)
        count += 1
