"""SIGKILL between blob and alias: the registry stays whole, and what was acknowledged is there."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import bmt_core
import httpx2
import pytest
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from bmt_server.registry.registry import Registry

from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.publisher import Publisher
from tests.support.scenarios.registry import looked_at, new_key

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

KILLS = scaled(200, 10)
NAME, ALIAS = "m", "prod"


@dataclass
class Tried:
    """One upload: what it was of, and whether the server said that it has it."""

    digest: str
    data: bytes
    acknowledged: bool = False


def upload(server: Publisher, key: str, tried: Tried) -> None:
    try:
        answer = httpx2.put(
            f"{server.url}/v1/masks/{NAME}",
            params={"alias": ALIAS},
            content=tried.data,
            headers={"Authorization": f"Bearer {key}"},
            timeout=20,
        )
    except httpx2.HTTPError:
        return
    assert answer.status_code in (200, 201), answer.text
    tried.acknowledged = True


def test_publish_killed(valkey, tmp_path):
    figures = Figures("publish_killed")
    chance = random.Random(1)
    key = asyncio.run(new_key(valkey.url))
    uploads: list[Tried] = []

    def another() -> Tried:
        mask = make_mask(len(uploads), number=len(uploads))
        uploads.append(Tried(mask.digest, bmt_core.encode(mask)))
        return uploads[-1]

    # How long the path is: the second upload of a process, whose connections are made.
    whole = Publisher(valkey.url, tmp_path / "cache")
    upload(whole, key, another())
    first = whole.lines()
    whole.stop()
    dangling = stale = between = retried = 0
    for kill in range(KILLS):
        before, _, orphans_before = asyncio.run(looked_at(valkey.url))
        tried = another()
        server = Publisher(valkey.url, tmp_path / "cache", 1 + chance.randrange(first))
        upload(server, key, tried)
        server.process.join(1)
        server.stop()
        state, problems, orphans = asyncio.run(looked_at(valkey.url))
        old = before.aliases[ALIAS]
        dangling += bool(problems)
        # Alias and latest move in one step: both old, or both new.
        pointers = {state.aliases[ALIAS], state.latest}
        stale += pointers not in ({old}, {tried.digest})
        stale += tried.acknowledged and pointers != {tried.digest}
        between += orphans > orphans_before
        if kill % 10 == 0:
            # The client asks again, and once is enough.
            server = Publisher(valkey.url, tmp_path / "cache")
            upload(server, key, tried)
            server.stop()
            again, problems, _ = asyncio.run(looked_at(valkey.url))
            retried += not problems and again.aliases[ALIAS] == again.latest == tried.digest
    size = f"{KILLS} kills at random lines of {first}"
    figures.record("dangling", dangling, "registries", "== 0", size=size)
    figures.record("neither_old_nor_new", stale, "aliases", "== 0", size=size)
    figures.record("between_blob_and_alias", between, "kills", ">= 1", size=size)
    figures.record("retries_failed", -(-KILLS // 10) - retried, "retries", "== 0", size=size)

    valkey.kill()
    valkey.start()
    acknowledged = [t for t in uploads if t.acknowledged]
    server = Publisher(valkey.url, tmp_path / "cold")
    lost = 0
    with httpx2.Client(headers={"Authorization": f"Bearer {key}"}, timeout=20) as client:
        for tried in acknowledged:
            found = client.get(f"{server.url}/v1/masks/{NAME}@{tried.digest}")
            blob = found.json().get("file_digest", "")
            data = client.get(f"{server.url}/v1/blobs/{blob}")
            lost += data.content != tried.data
    server.stop()
    size = f"{len(acknowledged)} acknowledged, Valkey killed and started again"
    figures.record("acknowledged_lost", lost, "uploads", "== 0", size=size)
    orphans, left = asyncio.run(swept(valkey.url))
    figures.record("orphans_left", left, "blobs", "== 0", size=f"{orphans} before `gc`")
    figures.end()


async def swept(url: str) -> tuple[int, int]:
    """Orphans before and after two visits of `bmt-server gc`."""
    store = RegistryConnection(url)
    try:
        registry = Registry(store)
        first = await collect_orphans(registry, min_age_s=0)
        await collect_orphans(registry, min_age_s=0)
        return first.orphans, (await check_consistency(registry)).orphans
    finally:
        await store.close()
