"""Strangers next to honest clients, over real connections: tests/system has the full size."""

from __future__ import annotations

import pytest

from tests.support.scenarios.strangers import first_requests, stub, uploads_beside_strangers

pytestmark = pytest.mark.found


async def test_uploads_beside_connections_with_made_up_keys(valkey, tmp_path):
    with stub(valkey.url, tmp_path) as one:
        mine, theirs = await uploads_beside_strangers(one, strangers=60, uploads=10)
    assert mine == {201: 10}
    assert set(theirs) <= {401, 429}


async def test_first_requests_of_one_key_at_a_fresh_replica(valkey, tmp_path):
    with stub(valkey.url, tmp_path / "0") as one:
        key = one.key
    with stub(valkey.url, tmp_path / "1") as two:
        assert await first_requests(type(two)(two.url, key), 300) == {200: 300}
