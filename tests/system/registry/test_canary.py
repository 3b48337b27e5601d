"""A canary at 5 % on two servers without an engine: shares, stickiness, and moves under load."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import pytest
from bmt_client import BmtClient, Version

from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.publisher import Publisher
from tests.support.scenarios.registry import looked_at, new_key

pytestmark = [pytest.mark.operate, pytest.mark.redis, pytest.mark.timeout(3600)]

REQUESTS = scaled(10_000, 200)
ROUNDS = scaled(20, 3)
AT_ONCE = 8
VISIBLE_S = 1.0
PERCENT = 5
SIGMAS = 4.0


@dataclass(frozen=True)
class Answer:
    """One answer. began, ended: on the monotonic clock, seconds. models: of all its parts."""

    user: str
    status: int
    models: frozenset[str]
    began: float
    ended: float


async def ask(client: httpx2.AsyncClient, user: str) -> Answer:
    """A streamed completion of four prompts with two choices each."""
    began = time.monotonic()
    body = {"model": "m:prod", "prompt": ["x"] * 4, "n": 2, "stream": True, "user": user}
    response = await client.post("/v1/completions", json=body)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    models = {json.loads(line)["model"] for line in lines}
    models.add(response.headers.get("x-bmt-model", "none"))
    assert response.status_code != 200 or len(lines) == 8
    return Answer(user, response.status_code, frozenset(models), began, time.monotonic())


async def ask_all(servers: list[Publisher], key: str, users: list[str]) -> list[Answer]:
    """One request of each user, in turn by the servers."""
    headers = {"Authorization": f"Bearer {key}"}
    answers: list[Answer] = []
    turns = itertools.cycle(range(len(servers)))
    waiting = iter([(next(turns), user) for user in users])
    clients = [httpx2.AsyncClient(base_url=s.url, headers=headers, timeout=60) for s in servers]

    async def work() -> None:
        for turn, user in waiting:
            answers.append(await ask(clients[turn], user))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    for client in clients:
        await client.aclose()
    return answers


def canary_of(answers: list[Answer], model: str) -> set[str]:
    return {one.user for one in answers if one.models == {model}}


def wait_until(condition: Any) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 20
        time.sleep(0.01)


def test_canary(valkey, tmp_path):
    figures = Figures("canary")
    key = asyncio.run(new_key(valkey.url))
    servers = [Publisher(valkey.url, tmp_path / name, key=key) for name in ("a", "b")]
    try:
        clients = [BmtClient(base_url=s.url, api_key=key) for s in servers]
        main, canary, third = (clients[0].upload(make_mask(i), "m") for i in range(3))
        clients[0].set_alias("m", "prod", main, canary=canary, percent=PERCENT)
        wait_until(lambda: clients[1].alias("m", "prod").percent == PERCENT)

        users = [f"user-{i}" for i in range(REQUESTS)]
        start = time.monotonic()
        first = asyncio.run(ask_all(servers, key, users))
        rate = REQUESTS / (time.monotonic() - start)
        size = f"{REQUESTS} users, 2 servers, {rate:.0f} requests/s of 4 prompts x 2 choices"
        taken = canary_of(first, canary.model)
        share = PERCENT / 100
        sigma = math.sqrt(share * (1 - share) / REQUESTS)
        figures.record("share", 100 * len(taken) / REQUESTS, "%", size=size)
        figures.record(
            "share_from_5_percent",
            abs(len(taken) / REQUESTS - share) / sigma,
            "standard deviations",
            f"<= {SIGMAS}",
            size=size,
        )
        # Again, each user by the other server.
        again = asyncio.run(ask_all(servers[::-1], key, users[: REQUESTS // 2]))
        other = canary_of(again, canary.model) ^ (taken & {one.user for one in again})
        figures.record("users_that_changed", len(other), "users", "== 0", size=size)
        mixed = [a for a in first + again if a.status != 200 or len(a.models) != 1]
        figures.record("mixed_or_failed", len(mixed), "answers", "== 0", size=size)

        versions = (main, canary, third)
        moves, answers = asyncio.run(_moved_under_load(servers, clients, key, versions))
        wrong, late = _compare(moves, answers)
        found = collections.Counter(a.status for a in answers)
        size = f"{len(moves)} moves, {len(answers)} answers: {dict(found)}"
        figures.record("moved_wrong", len(wrong), "answers", "== 0", size=size, note=str(wrong[:2]))
        mixed = [a for a in answers if a.status != 200 or len(a.models) != 1]
        figures.record("moved_mixed_or_failed", len(mixed), "answers", "== 0", size=size)
        figures.record("moved_seen_s_p50", percentile(late, 50), "s", size=size)
        figures.record("moved_seen_s", max(late), "s", f"<= {VISIBLE_S:g}", size=size)
        _, problems, _ = asyncio.run(looked_at(valkey.url))
        figures.record("registry_problems", len(problems), "problems", "== 0", size=size)
    finally:
        for server in servers:
            server.stop()
    figures.end()


@dataclass(frozen=True)
class Move:
    """One change: when it was asked for and acknowledged, and the models that may answer then."""

    asked: float
    done: float
    models: frozenset[str]


async def _moved_under_load(
    servers: list[Publisher],
    clients: list[BmtClient],
    key: str,
    versions: tuple[Version, Version, Version],
) -> tuple[list[Move], list[Answer]]:
    """Raise, roll back, set again and promote, in turn by the servers, while requests run."""
    answers: list[Answer] = []
    old, new, spare = versions
    both = frozenset((old.model, new.model))
    start = time.monotonic()
    moves = [Move(start, start, both)]
    running = True

    async def load(worker: int) -> None:
        for number in itertools.count():
            if not running:
                return
            users = [f"load-{worker}-{number}-{i}" for i in range(8)]
            answers.extend(await ask_all(servers, key, users))

    async def move(call: Any, *models: str) -> None:
        asked = time.monotonic()
        await asyncio.to_thread(call)
        moves.append(Move(asked, time.monotonic(), frozenset(models)))
        await asyncio.sleep(0.3)

    loads = [asyncio.create_task(load(i)) for i in range(2)]
    for number in range(ROUNDS):
        one, other = clients if number % 2 else clients[::-1]
        split = partial(one.set_alias, "m", "prod", old, canary=new)
        await move(partial(split, percent=50), old.model, new.model)
        await move(partial(other.rollback_alias, "m", "prod"), old.model)
        await move(partial(split, percent=20), old.model, new.model)
        await move(partial(other.promote, "m", "prod"), new.model)
        old, new, spare = new, spare, old
    running = False
    await asyncio.gather(*loads)
    return moves, answers


def _compare(moves: list[Move], answers: list[Answer]) -> tuple[list[Any], list[float]]:
    """Answers by a version that no setting of their time allows, and delays of moves.

    A setting is in force from when its change was asked for until the next one is acknowledged. A
    server may be late: the delay of an answer is counted from the end of the last setting that
    allows it, and beyond `VISIBLE_S` the answer is wrong.
    """
    wrong: list[Any] = []
    late = [0.0]
    ends = [*(move.done for move in moves[1:]), math.inf]
    for answer in answers:
        ended = [-math.inf]
        for move, end in zip(moves, ends, strict=True):
            if answer.models <= move.models and move.asked <= answer.ended:
                ended.append(end)
        delay = max(0.0, answer.began - max(ended))
        if 0 < delay <= VISIBLE_S:
            late.append(delay)
        elif delay and answer.status == 200:
            wrong.append((delay, answer))
    return wrong, late
