"""A registry whose disk is full: it lives, serves and acknowledges nothing that it may lose."""

from __future__ import annotations

import pytest

from tests.support.replica import make_mask, replica
from tests.support.scenarios.nodes import node, until
from tests.support.scenarios.registry import new_key

LIMIT = 64 << 10


@pytest.mark.found
async def test_a_full_disk_refuses_uploads_and_loses_nothing_acknowledged(tmp_path):
    with node(tmp_path / "r", "--appendfsync", "everysec") as one:
        keys = {"admin": await new_key(one.url)}
        one.fill_disk(LIMIT)
        acknowledged, refused = [], []
        async with replica(one.url, tmp_path / "cache", keys) as api:
            for i in range(400):
                answer = await api.put(f"m{i}", make_mask(i))
                if answer.status_code == 201:
                    assert not refused, "an upload was acknowledged on a full disk"
                    acknowledged.append(f"m{i}")
                else:
                    assert answer.status_code in (503, 507), answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                    refused.append(f"m{i}")
                if len(refused) == 3:
                    break
            assert acknowledged
            assert refused
            assert one.process.poll() is None, "Valkey ended"
            async with api.client() as client:
                answer = await client.get(f"/v1/masks/{acknowledged[0]}")
                assert answer.status_code == 200
            # Room again: the next upload works without a restart of anything.
            one.fill_disk()
            until(lambda: one.client().info("persistence")["aof_last_write_status"] == "ok")
            answer = await api.put("later", make_mask(1000))
            assert answer.status_code == 201
        one.kill()
        one.start()
        names = {key.rsplit("/", 1)[1] for key in one.client().keys("{bmt}:name:*")}
        assert {*acknowledged, "later"} <= names
