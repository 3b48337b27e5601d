"""Three replicas on one registry: what is published anywhere is served everywhere, soon."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import bmt_core
import httpx2
import numpy as np
import pytest

from tests.support.masks import random_mask_of
from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Target, until
from tests.support.scenarios.proxy import FaultProxy
from tests.support.scenarios.publisher import Publisher
from tests.support.scenarios.servers import several, target
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

REPLICAS = 3
PUBLISHES = scaled(500, 10)
AWAY_S = 20.0 if scaled(10) >= 5 else 12.0
WRITERS, WRITES = 16, scaled(20, 3)


@pytest.fixture(scope="module")
def proxies(valkey):
    made = [FaultProxy(valkey.socket) for _ in range(REPLICAS)]
    yield made
    for proxy in made:
        proxy.close()


@pytest.fixture(scope="module", params=["api", "engine"])
def kind(request) -> str:
    """With the real engine, and without one, where the rest has the processors to itself."""
    return request.param


@pytest.fixture(scope="module")
def replicas(kind, request, proxies, admin_key, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    urls = [proxy.url for proxy in proxies]
    if kind == "engine":
        with several(request.getfixturevalue("smol"), folder, urls, admin_key) as servers:
            yield servers
        return
    made = [Publisher(url, folder / str(i), key=admin_key) for i, url in enumerate(urls)]
    try:
        yield made
    finally:
        for one in made:
            one.stop()


@pytest.fixture(scope="module")
def masks(kind, request):
    """Many small masks of one base: a first one, with another position for each of them."""
    if kind == "api":
        return lambda number: bmt_core.encode(make_mask(number))
    first = random_mask_of(request.getfixturevalue("smol"), 0, 0.0005)

    def made(number: int) -> bytes:
        tensor = first.tensors[0]
        # From the positions that the first one keeps.
        free = np.setdiff1d(np.arange(number, number + 1000), tensor.positions)[:1]
        positions = np.sort(np.append(tensor.positions, free)).astype(np.uint32)
        changed = bmt_core.TensorMask(tensor.name, tensor.shape, positions)
        return bmt_core.encode(bmt_core.Mask(first.base, (changed, *first.tensors[1:])))

    return made


def named(scenario: str, kind: str) -> Figures:
    return Figures(scenario if kind == "engine" else f"{scenario}_without_engine", scenario)


def put(served: Served | Publisher, name: str, data: bytes, **headers: str) -> httpx2.Response:
    return httpx2.put(
        f"{served.url}/v1/masks/{name}",
        params={"alias": "prod"},
        content=data,
        headers={**served.headers, **headers},
        timeout=30,
    )


async def serves(to: Target, name: str, model: str) -> bool:
    answer = await to.ask(name, tokens=1)
    assert answer.ok or answer.status in (404, 503), answer
    return answer.model == model


def test_publish_to_served(kind, replicas, masks):
    """Time between the request that publishes and the last replica's answer of the new version."""
    figures, seconds, visible = named("publish_to_served", kind), [], []

    async def run() -> None:
        targets = [target(r) for r in replicas]
        with ThreadPoolExecutor(1) as pool:
            for number in range(PUBLISHES):
                data, began = masks(2 * number), time.monotonic()
                at = replicas[number % REPLICAS]
                answer = await asyncio.get_running_loop().run_in_executor(pool, put, at, "m", data)
                assert answer.status_code == 201, answer.text
                model, stored = answer.json()["model"], time.monotonic()
                await asyncio.gather(
                    *(until(partial(serves, t, "m:prod", model), 30) for t in targets)
                )
                seconds.append(time.monotonic() - began)
                visible.append(time.monotonic() - stored)

    asyncio.run(run())
    size = f"{PUBLISHES} publishes, {REPLICAS} replicas"
    figures.record("p99", percentile(seconds, 99), "s", "<= 1", size=size)
    figures.record("p50", percentile(seconds, 50), "s", size=size)
    figures.record("after_upload_p99", percentile(visible, 99), "s", "<= 1", size=size)
    figures.end()


def test_replica_was_away(kind, replicas, proxies, masks):
    """Cut off for a while, it goes on with what it knows, and finds what it missed when back."""
    figures = named("replica_was_away", kind)
    to = target(replicas[0])

    async def run() -> None:
        first = put(replicas[1], "away", masks(5001)).json()["model"]
        await until(lambda: serves(to, "away:prod", first), 30)
        proxies[0].set("cut")
        cut = time.monotonic()
        await asyncio.sleep(1)
        newer = put(replicas[1], "away", masks(5003)).json()["model"]
        gone = put(replicas[2], "gone", masks(5005))
        assert gone.status_code == 201
        deleted = httpx2.delete(
            f"{replicas[2].url}/v1/masks/gone", headers=replicas[2].headers, timeout=30
        )
        assert deleted.status_code == 204
        served = 0
        while time.monotonic() - cut < AWAY_S:
            answer = await to.ask("away:prod", tokens=1)
            served += answer.ok and answer.model == first
            assert answer.ok, answer
            await asyncio.sleep(0.5)
        assert served
        proxies[0].set("pass")
        seconds = await until(lambda: serves(to, "away:prod", newer), 60)
        size = f"cut for {AWAY_S:g} s"
        figures.record("converged_in", seconds, "s", "<= 11", size=size)
        assert (await to.ask("gone", tokens=1)).status == 404

    asyncio.run(run())
    figures.end()


def test_racing_writers(kind, replicas, masks):
    """Writers that each read, then write on condition: every success is a version of its own."""
    figures = named("racing_writers", kind)
    chance = random.Random(2)
    numbers = list(range(6001, 6001 + 2 * WRITERS * WRITES, 2))
    chance.shuffle(numbers)
    # Both kinds have one registry, and a base model each.
    name = f"raced-{kind}"
    put(replicas[0], name, masks(5999))

    def write(writer: int) -> tuple[int, int, list[str]]:
        won, lost, made = 0, 0, []
        with httpx2.Client(timeout=30, headers=replicas[0].headers) as client:
            for turn in range(WRITES):
                data = masks(numbers[writer * WRITES + turn])
                while True:
                    at = replicas[(writer + turn) % REPLICAS]
                    url = f"{at.url}/v1/masks/{name}"
                    now = client.get(url).json()["digest"]
                    answer = client.put(url, content=data, headers={"If-Match": f'"{now}"'})
                    if answer.status_code == 412:
                        lost += 1
                        continue
                    assert answer.status_code == 201, answer.text
                    assert answer.json()["parent"] == now, "somebody's update was lost"
                    won, made = won + 1, [*made, answer.json()["digest"]]
                    break
        return won, lost, made

    with ThreadPoolExecutor(WRITERS) as pool:
        results = list(pool.map(write, range(WRITERS)))
    won, lost = (sum(r[i] for r in results) for i in (0, 1))
    listed = httpx2.get(
        f"{replicas[1].url}/v1/masks/{name}/versions",
        params={"limit": 1000},
        headers=replicas[1].headers,
        timeout=30,
    ).json()["data"]
    revs = sorted(v["rev"] for v in listed)
    missing = {d for r in results for d in r[2]} - {v["digest"] for v in listed}
    size = f"{WRITERS} writers, {won} writes, {lost} conflicts"
    figures.record("lost_updates", len(missing), "updates", "== 0", size=size)
    figures.record("holes_in_revs", revs[-1] - revs[0] + 1 - len(revs), "revs", "== 0", size=size)
    figures.record("versions", len(listed), "versions", f"== {won + 1}", size=size)
    figures.end()
