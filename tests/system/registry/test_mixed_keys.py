"""Keys of this revision on servers of former ones, on one registry: honored or refused, never more.

$BMT_OLD_REVISIONS: commits of the old replicas, with blanks between.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import bmt_core
import pytest
from bmt_server.registry.api_keys import ApiKeyStore, make_key
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.keys.secret import hash_key

from tests.support.replica import make_mask
from tests.support.scenarios.revisions import ROOT, RevisionReplica, export

pytestmark = [pytest.mark.operate, pytest.mark.redis, pytest.mark.timeout(600)]

REVISIONS = os.environ.get("BMT_OLD_REVISIONS", "b34d087 1ae8fe4").split()
SCOPES: list[tuple[str, ...]] = [
    *(("infer",), ("upload",), ("promote",), ("upload", "promote"), ("infer", "upload")),
    *(("admin",), ("operator",), ("metrics",), ("priority",)),
]


def with_keys(url: str, work: Callable[[ApiKeyStore], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        connection = RegistryConnection(url)
        try:
            return await work(ApiKeyStore(connection))
        finally:
            await connection.close()

    return asyncio.run(run())


def rights(replica: RevisionReplica, key: str, number: int) -> dict[str, bool]:
    """Rights of a key on a replica, tried by requests that change something of `m`."""

    def may(method: str, path: str, **options: Any) -> bool:
        headers = {"Authorization": f"Bearer {key}"}
        status = replica.request(method, path, headers=headers, **options).status_code
        assert status < 500, (method, path, status)
        return status not in (401, 403)

    data = bmt_core.encode(make_mask(number))
    target = {"digest": make_mask(0).digest}
    return {
        "read": may("GET", "/v1/masks"),
        "infer": may("POST", "/v1/chat/completions", json={"model": "m"}),
        "upload": may("PUT", "/v1/masks/m", content=data),
        "promote": may("PUT", "/v1/masks/m/aliases/prod", json=target),
        "admin": may("PUT", "/v1/masks/m/pin"),
    }


def ended(replicas: list[RevisionReplica], key: str) -> bool:
    start = time.monotonic()
    while time.monotonic() - start < 5:
        if not any(rights(one, key, 0)["read"] for one in replicas):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_key_may_more_on_an_old_server(valkey, tmp_path, revision):
    reason = export(revision, tmp_path / "tree")
    if reason:
        pytest.skip(reason)
    with_keys(valkey.url, lambda keys: keys._connection.quick.flushall())
    with (
        RevisionReplica(tmp_path / "tree", valkey.url, tmp_path / "old") as old,
        RevisionReplica(ROOT, valkey.url, tmp_path / "new") as new,
    ):
        new.publish("m", make_mask(0), params={"alias": "prod"})
        for number, scopes in enumerate(SCOPES):
            made = with_keys(valkey.url, lambda keys, s=scopes: keys.create(s, expires="1h"))
            before, now = (rights(one, made[0], 10 + number) for one in (old, new))
            wider = [right for right in before if before[right] and not now[right]]
            # Reading names of masks is all that a key without a known scope may.
            assert set(wider) <= ({"read"} if scopes == ("metrics",) else set()), scopes
        # What both know is honored.
        both = with_keys(valkey.url, lambda keys: keys.create(("infer", "upload", "promote")))
        assert rights(old, both[0], 30) == rights(new, both[0], 31)
        # A key of the old server keeps what it could do.
        text = {"key_id": "former", "tenant": "default", "scopes": ["infer", "upload"]}
        text |= {"label": "", "created": "2026-01-01T00:00:00+00:00", "expires": None}
        former = make_key(("upload",))
        field = hash_key(former)
        with_keys(
            valkey.url,
            lambda keys: keys._connection.quick.hset("{bmt}:keys", field, json.dumps(text)),
        )
        assert rights(old, former, 32) == rights(new, former, 33)
        assert rights(new, former, 34)["promote"]
        # A rotation and a revocation by the new one end the key on the old one.
        rotated = with_keys(valkey.url, lambda keys: keys.rotate("former"))
        assert ended([old, new], former)
        assert rights(old, rotated.secret, 35)["upload"]
        with_keys(valkey.url, lambda keys: keys.revoke(both[1].key_id))
        assert ended([old, new], both[0])
        # An environment's key that was revoked stays so, also if an old server finds it again.
        key = make_key(("admin",))
        with_keys(valkey.url, lambda keys: keys.import_environment_key(key))
        assert rights(old, key, 36)["admin"]
        records = with_keys(valkey.url, lambda keys: keys.records())
        (record,) = [r for r in records if r.label == "BMT_ADMIN_KEY"]
        with_keys(valkey.url, lambda keys: keys.revoke(record.key_id))
        assert ended([old, new], key)
        again = json.dumps({**text, "key_id": "x", "scopes": ["admin"], "label": "BMT_ADMIN_KEY"})
        stored = with_keys(
            valkey.url,
            lambda keys: keys._connection.quick.hsetnx("{bmt}:keys", hash_key(key), again),
        )
        assert not stored
