"""Two servers of two API processes each on one registry: every change is soon seen by all four."""

from __future__ import annotations

import asyncio
import collections
import json
import time

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Target
from tests.support.scenarios.servers import several, target
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

ROUNDS = scaled(20, 3)
FLAGS = ("--api-server-count", "2", "--logging-config.formatter", "json")
# So many answers in a row, on connections of their own: no process is left out by chance.
IN_A_ROW = 16


@pytest.fixture(scope="module")
def servers(smol, valkey, admin_key, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with several(smol, folder, [valkey.url] * 2, admin_key, *FLAGS) as made:
        yield made


async def settled(to: Target, model: str, wanted: str) -> float:
    """Seconds to the last answer that is not as wanted: a version's name, or a status."""
    began = last = time.monotonic()
    right = 0
    while right < IN_A_ROW:
        answers = await asyncio.gather(*(to.ask(model, tokens=1) for _ in range(4)))
        for answer in answers:
            if wanted in (answer.model, str(answer.status)):
                right += 1
            else:
                right, last = 0, time.monotonic()
                assert answer.ok or answer.status in (401, 404), answer
        assert time.monotonic() - began < 60, f"{model} is not {wanted}: {answers[-1]}"
    return last - began


def workers(served: Served) -> set[int]:
    """Process ids of a server's API processes that have answered requests."""
    lines = (x for x in served.log.read_text().splitlines() if x.startswith("{"))
    entries = (json.loads(x) for x in lines if '"request_id"' in x)
    return {x["process"] for x in entries if x["path"] == "/v1/completions"}


def test_api_processes(smol, valkey, servers):
    figures = Figures("api_processes")
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    clients = [BmtClient(base_url=s.url, api_key=s.key) for s in servers]
    targets = [target(s) for s in servers]

    async def everywhere(what: str, model: str, wanted: str, to: list[Target] = targets) -> None:
        seconds[what].append(max(await asyncio.gather(*(settled(t, model, wanted) for t in to))))

    async def run() -> None:
        first = await asyncio.to_thread(upload, clients[0], smol, 0, "m", ["prod"])
        await everywhere("first", "m:prod", first.model)
        for turn in range(ROUNDS):
            here, there = clients[turn % 2], clients[1 - turn % 2]
            newer = await asyncio.to_thread(upload, here, smol, turn + 1, "m", [])
            await everywhere("publish", "m", newer.model)
            await asyncio.to_thread(there.set_alias, "m", "prod", newer)
            await everywhere("alias", "m:prod", newer.model)
            older = await asyncio.to_thread(here.rollback, "m")
            await everywhere("rollback", "m", older.model)
            await asyncio.to_thread(upload, there, smol, turn + 1, f"gone{turn}", [])
            await asyncio.to_thread(here.delete, f"gone{turn}")
            await everywhere("delete", f"gone{turn}", "404")
        store = RegistryConnection(valkey.url)
        made = await ApiKeyStore(store).create(("infer",))
        assert made is not None
        key, record = made
        others = [Target(t.port, key) for t in targets]
        await everywhere("key", "m:prod", newer.model, others)
        await ApiKeyStore(store).revoke(record.key_id)
        await everywhere("revoked", "m:prod", "401", others)
        await store.close()

    asyncio.run(run())
    size = f"{ROUNDS} rounds, 2 servers x 2 API processes"
    for what in ("publish", "alias", "rollback", "delete"):
        figures.record(f"{what}_seen_in", max(seconds[what]), "s", "<= 1", size=size)
        figures.record(f"{what}_seen_in_p50", percentile(seconds[what], 50), "s", size=size)
    figures.record("revoked_in", seconds["revoked"][0], "s", "<= 5", size="once")
    asked = sum(len(workers(s)) for s in servers)
    figures.record("processes_asked", asked, "processes", "== 4", size=size)
    # A connection each, so that both processes are asked.
    scrapes = [(f"{s.url}/metrics", s.headers) for s in servers for _ in range(8)]
    pages = [httpx2.get(url, headers=headers).text for url, headers in scrapes]
    wanted = ("bmt_masks_resident_bytes{", "vllm:lora_requests_info{", "bmt_requests_total{")
    lacking = sum(any(name not in text for name in wanted) for text in pages)
    figures.record(
        "scrapes_that_lack_masks", lacking, "scrapes", "== 0", size=f"{len(pages)} scrapes"
    )
    figures.end()


def upload(client: BmtClient, model, seed: int, name: str, alias: list[str]):
    data = bmt_core.encode(random_mask_of(model, seed, 0.0005))
    return client.upload(data, name=name, alias=alias)
