"""Replicas of old revisions and of this one side by side on one registry.

$BMT_OLD_REVISION: commits of the old replicas, in turn, with blanks between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bmt_core
import httpx2
import pytest
import redis
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency
from bmt_server.registry.registry import Registry

from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.revisions import ROOT, RevisionReplica, export

pytestmark = [pytest.mark.operate, pytest.mark.redis, pytest.mark.timeout(3600)]

# The one before names were read by what changed, and the one before keys and blobs had rooms.
REVISIONS = os.environ.get("BMT_OLD_REVISION", "b34d087 1ae8fe4").split()
NAMES = scaled(40, 8)
RACES = scaled(50, 10)
VISIBLE_S = 5.0


@pytest.fixture(scope="module", params=REVISIONS)
def revision(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def old_tree(revision, tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("old") / "tree"
    reason = export(revision, tree)
    if reason:
        pytest.skip(reason)
    return tree


class Comparison:
    """Counts answers of both replicas, and those that are wrong."""

    def __init__(self) -> None:
        self.answers = 0
        self.wrong: list[str] = []

    def equal(self, what: str, actual: Any, expected: Any) -> None:
        self.answers += 1
        if actual != expected:
            self.wrong.append(f"{what}: {actual!r}, expected {expected!r}")


def visible_s(replica: RevisionReplica, expected: dict[str, Any]) -> float:
    """Seconds until a replica lists what the other one lists."""
    start = time.monotonic()
    while (found := replica.listing()) != expected:
        assert time.monotonic() - start < 4 * VISIBLE_S, difference(found, expected)
        time.sleep(0.02)
    return time.monotonic() - start


def difference(found: Any, expected: Any, where: str = "") -> str:
    """The first part of a JSON value that is not as expected."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}):
            if found.get(key) != expected.get(key):
                return difference(found.get(key), expected.get(key), f"{where}.{key}")
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            if one != other:
                return difference(one, other, f"{where}[{at}]")
    return f"{where} is {found!r}, expected {expected!r}"


def check_resolution(
    compare: Comparison, replica: RevisionReplica, masks: dict[str, bmt_core.Mask]
) -> None:
    """Check references, bytes and the served version. masks: expected mask of each reference."""
    for reference, mask in masks.items():
        data = bmt_core.encode(mask)
        name = reference.partition(":")[0].partition("@")[0]
        found = replica.json("GET", f"/v1/masks/{reference}")
        compare.equal(f"digest of {reference}", found["digest"], mask.digest)
        blob = replica.request("GET", f"/v1/blobs/{found['file_digest']}")
        compare.equal(f"blob of {reference}", blob.content, data)
        served = replica.served_model(reference)
        compare.equal(f"served {reference}", served, f"{name}@{mask.digest[:12]}")


def race(replicas: list[RevisionReplica], name: str, seed: int, digest: str) -> list[int]:
    """Statuses of two publications that expect the same latest version."""

    def publish(index: int) -> int:
        mask = make_mask(seed + index, number=seed + index)
        headers = {"If-Match": f'"{digest}"'}
        data = bmt_core.encode(mask)
        path = f"/v1/masks/{name}"
        return replicas[index].request("PUT", path, content=data, headers=headers).status_code

    with ThreadPoolExecutor(2) as pool:
        return sorted(pool.map(publish, range(2)))


async def revoke(url: str, key_id: str) -> None:
    connection = RegistryConnection(url)
    try:
        await ApiKeyStore(connection).revoke(key_id)
    finally:
        await connection.close()


async def problems(url: str) -> list[str]:
    connection = RegistryConnection(url)
    try:
        report = await check_consistency(Registry(connection))
        return [f"{p.code}: {p.what}" for p in report.problems]
    finally:
        await connection.close()


@pytest.fixture
def empty(valkey):
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        client.flushall()
    return valkey


def test_mixed_revisions(empty, tmp_path, revision, old_tree):
    valkey = empty
    suffix = "" if revision == REVISIONS[0] else f"_{revision}"
    figures, compare = Figures(f"mixed_revisions{suffix}", "mixed_revisions"), Comparison()
    names = [f"m{i:03}" for i in range(NAMES)]
    expected: dict[str, bmt_core.Mask] = {}
    with RevisionReplica(old_tree, valkey.url, tmp_path / "old") as old:
        # The old revision fills the registry: two versions per name, aliases, pins.
        entries = []
        for i, name in enumerate(names):
            first, second = make_mask(2 * i, number=i), make_mask(2 * i + 1, note="Größe 数")
            entries.append(old.publish(name, first, params={"alias": "prod"}))
            entries.append(old.publish(name, second))
            expected |= {name: second, f"{name}:prod": first}
            expected[f"{name}@{first.digest[:12]}"] = first
        for name in names[::4]:
            old.json("PUT", f"/v1/masks/{name}/pin")
        listing = old.listing()
        with RevisionReplica(ROOT, valkey.url, tmp_path / "new") as new:
            compare.equal("new listing", new.listing(), listing)
            check_resolution(compare, new, expected)
            compare.equal("old key", _status(new, old.key), 200)
            compare.equal("new key", _status(old, new.key), 200)

            # The new revision publishes versions and names, and moves aliases, pins and names.
            for i, name in enumerate(names):
                third = make_mask(10_000 + i, note="new")
                entries.append(new.publish(name, third, params={"alias": "canary"}))
                second = expected[name]
                path = f"/v1/masks/{name}/aliases/prod"
                new.json("PUT", path, json={"digest": second.digest})
                expected |= {name: third, f"{name}:canary": third, f"{name}:prod": second}
            for i in range(NAMES):
                mask = make_mask(20_000 + i)
                entries.append(new.publish(f"n{i:03}", mask))
                expected[f"n{i:03}"] = mask
            for name in names[::4]:
                new.json("DELETE", f"/v1/masks/{name}/pin")
            gone = names[-1]
            new.json("DELETE", f"/v1/masks/{gone}")
            expected = {k: v for k, v in expected.items() if not k.startswith(gone)}
            listing = new.listing()
            seconds = visible_s(old, listing)
            figures.record(
                "visible_s",
                seconds,
                "s",
                f"<= {VISIBLE_S:g}",
                size=f"{2 * NAMES} names, new to old",
            )
            check_resolution(compare, old, expected)
            check_resolution(compare, new, expected)
            compare.equal("deleted", old.request("GET", f"/v1/masks/{gone}").status_code, 404)

            # A name deleted by one revision continues its revs under the other.
            again = old.publish(gone, make_mask(30_000))
            revs = [e["rev"] for e in entries if e["name"] == gone]
            compare.equal("rev grows across a delete", again["rev"] > max(revs), True)
            entries.append(again)
            ids = [e["id"] for e in entries]
            compare.equal("adapter ids are unique", len(set(ids)), len(ids))

            # A retention rule, which the old revision ignores, holds for what it publishes too.
            kept = [old.publish("kept", make_mask(45_000 + i)) for i in range(3)]
            new.json("PUT", "/v1/masks/kept/retention", json={"keep_last": 2})
            for i in range(3):
                replica = new if i else old
                kept.append(replica.publish("kept", make_mask(46_000 + i)))
            start = time.monotonic()
            while len(new.json("GET", "/v1/masks/kept/versions")["data"]) != 2:
                assert time.monotonic() - start < 4 * VISIBLE_S
                time.sleep(0.05)
            visible_s(old, new.listing())
            left = [e["digest"] for e in old.json("GET", "/v1/masks/kept/versions")["data"]]
            compare.equal("kept by the rule", left, [e["digest"] for e in kept[:-3:-1]])
            listing = new.listing()

            # Of two publications that expect the same version, one succeeds.
            base = old.publish("race", make_mask(40_000))
            digest = base["digest"]
            for i in range(RACES):
                pair = [old, new] if i % 2 else [new, old]
                statuses = race(pair, "race", 50_000 + 2 * i, digest)
                compare.equal(f"race {i}", statuses, [201, 412])
                visible_s(old, new.listing())
                digest = new.json("GET", "/v1/masks/race")["digest"]
                compare.equal(f"winner {i}", old.json("GET", "/v1/masks/race")["digest"], digest)
            compare.equal("old listing", old.listing(), new.listing())

            # A key that the new revision deletes ends on old replicas.
            asyncio.run(revoke(valkey.url, old.key_id))
            start = time.monotonic()
            while _status(old, old.key) != 401:
                assert time.monotonic() - start < 4 * VISIBLE_S
                time.sleep(0.02)
            revoked_s = time.monotonic() - start
            figures.record(
                "revoked_s", revoked_s, "s", f"<= {VISIBLE_S:g}", size="by the new, on the old"
            )
            listing = new.listing()

    # Both revisions start on the registry that both wrote, with empty caches.
    for which, tree in (("old", old_tree), ("new", ROOT)):
        with RevisionReplica(tree, valkey.url, tmp_path / f"cold-{which}") as cold:
            compare.equal(f"{which} listing after a restart", cold.listing(), listing)
            check_resolution(compare, cold, expected)
    figures.record(
        "wrong_answers",
        len(compare.wrong),
        "answers",
        "== 0",
        size=f"{compare.answers} answers of {revision} and this revision",
        note="; ".join(compare.wrong[:3]),
    )
    found = asyncio.run(problems(valkey.url))
    figures.record(
        "problems", len(found), "entries", "== 0", size="fsck", note="; ".join(found[:3])
    )
    figures.end()


def _status(replica: RevisionReplica, key: str) -> int:
    """Status of a listing with this key."""
    headers = {"Authorization": f"Bearer {key}"}
    response: httpx2.Response = replica.request("GET", "/v1/masks", headers=headers)
    return response.status_code
