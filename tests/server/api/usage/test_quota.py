"""Quota of a tenant's storage, over two replicas on a real Valkey."""

from __future__ import annotations

import asyncio

import bmt_core
import pytest
from bmt_server.registry.usage.limits import Limits

from tests.support.replica import make_mask, replica


async def limit(api, tenant, **limits):
    await api.state.limit_store.set("tenant", tenant, Limits(**limits))


def size(seed):
    return len(bmt_core.encode(make_mask(seed)))


@pytest.mark.found
async def test_versions_are_bounded_and_removal_makes_room(api):
    """Nothing bounded what one tenant stored in the registry of all."""
    await limit(api, "default", versions=3)
    found = [(await api.put(f"m{n % 2}", make_mask(n))).status_code for n in range(5)]
    assert found == [201] * 3 + [413] * 2
    refused = await api.put("m9", make_mask(9))
    error = refused.json()["error"]
    assert error["code"] == "quota_exceeded"
    assert "3 of 3 versions" in error["message"]
    assert "retry-after" not in refused.headers
    # What is there already may be published again; other tenants have their own.
    assert (await api.put("m0", make_mask(0))).status_code == 200
    assert (await api.put("m", make_mask(9), key="other")).status_code == 201
    async with api.client("admin") as client:
        assert (await client.delete("/v1/masks/m1")).status_code == 204
    assert (await api.put("m9", make_mask(9))).status_code == 201
    assert (await api.put("m8", make_mask(8))).status_code == 413


async def test_bytes_are_those_of_different_files(api):
    await limit(api, "default", storage_bytes=size(0) + size(1))
    assert (await api.put("a", make_mask(0))).status_code == 201
    # The same file under another name takes no more.
    for name in ("b", "c", "d"):
        assert (await api.put(name, make_mask(0))).status_code == 201
    assert (await api.put("a", make_mask(1))).status_code == 201
    refused = await api.put("a", make_mask(2))
    assert refused.status_code == 413
    stored = size(0) + size(1)
    assert f"{stored} of {stored} bytes, and this file has {size(2)}" in refused.text
    assert (await api.put("e", make_mask(1))).status_code == 201
    # A refused file is not kept.
    quick = api.state.connection.quick
    assert len(await quick.keys("{bmt}:blob:*")) == 3 - 1


@pytest.mark.parametrize(("limits", "fit"), [({"versions": 5}, 5), ({"storage_bytes": 0}, 5)])
async def test_uploads_at_once_on_two_replicas_do_not_pass_together(
    api, valkey, tmp_path, limits, fit
):
    if "storage_bytes" in limits:
        limits = {"storage_bytes": fit * max(size(n) for n in range(30)) + 5}
    await limit(api, "default", **limits)
    async with replica(valkey.url, tmp_path / "twin", api.keys) as other:
        await other.state.limit_store.refresh()
        answers = await asyncio.gather(
            *((api, other)[n % 2].put(f"m{n}", make_mask(n)) for n in range(30))
        )
        statuses = [a.status_code for a in answers]
        assert statuses.count(201) == fit
        assert statuses.count(413) == 30 - fit
        await asyncio.gather(api.state.replica.sync(), other.state.replica.sync())
        for one in (api, other):
            versions, stored, _ = one.state.replica.stored("default")
            assert versions == fit
            assert stored <= limits.get("storage_bytes", stored)


async def test_a_burst_far_beyond_the_list_is_counted(api, valkey, tmp_path):
    """A server that lags behind more versions than the list holds reads them first."""
    await limit(api, "default", versions=310)
    async with replica(valkey.url, tmp_path / "twin", api.keys) as other:
        await other.state.limit_store.refresh()
        await other.state.replica.close()  # it follows no changes now
        made = [make_mask(n) for n in range(12)]
        for n in range(300):
            assert (await api.put(f"m{n // 12}", made[n % 12])).status_code in (200, 201)
        found = [(await other.put(f"x{n}", made[n])).status_code for n in range(12)]
        assert found == [201] * 10 + [413] * 2


async def test_quotas_by_flags(valkey, tmp_path, api):
    async with replica(valkey.url, tmp_path / "twin", api.keys, tenant_versions=1) as other:
        assert (await other.put("a", make_mask(0))).status_code == 201
        assert (await other.put("a", make_mask(1))).status_code == 413
        await limit(other, "default", versions=2)
        assert (await other.put("a", make_mask(1))).status_code == 201
        async with other.client("infer") as client:
            me = (await client.get("/v1/me")).json()
        assert me["budgets"]["tenant"]["versions"] == 2
        assert me["stored"] == {"versions": 2, "bytes": size(0) + size(1)}
