"""Masks of training runs: removed by the key that pushes them, or by the servers once expired."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import bmt_core
import pytest
from bmt_server.registry.housekeeping import Housekeeper

from tests.support.replica import make_mask


async def call(api, key, method, path, **options):
    async with api.client(key) as client:
        return await client.request(method, path, **options)


async def push(api, name, seed, expires="1h", key="upload", **options):
    answer = await api.put(name, make_mask(seed), key, params={"expires": expires}, **options)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def lapse(api, name, tenant="default"):
    """Move a name's expiry into the past, as time does."""
    key = f"{{bmt}}:name:{tenant}/{name}"
    await api.state.connection.quick.hset(key, "expires", str(int(time.time()) - 1))
    await api.state.replica.refresh(tenant, name)


@pytest.mark.found
async def test_a_run_removes_its_masks_by_the_scope_upload(api):
    first, second = [await push(api, "rollout-1a2b", seed) for seed in (0, 1)]
    path = "/v1/masks/rollout-1a2b"
    for key, status in (("infer", 403), ("other", 404), ("upload", 204)):
        answer = await call(api, key, "DELETE", f"{path}/versions/{first['digest']}")
        assert answer.status_code == status, key
    in_use = await call(api, "upload", "DELETE", f"{path}/versions/{second['digest']}")
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (412, "in_use")
    for key, status in (("infer", 403), ("other", 404), ("upload", 204)):
        assert (await call(api, key, "DELETE", path)).status_code == status, key
    assert (await call(api, "upload", "GET", path)).status_code == 404


@pytest.mark.parametrize(
    "name", ["math", "rollout", "rollouts-1", "my-rollout-1", "rollout.x", "rollout_1"]
)
async def test_other_names_are_removed_by_administrators_alone(api, name):
    digest = (await api.put(name, make_mask(0))).json()["digest"]
    await api.put(name, make_mask(1))
    for path in (f"/v1/masks/{name}/versions/{digest}", f"/v1/masks/{name}"):
        assert (await call(api, "upload", "DELETE", path)).status_code == 403
    refused = await api.put(name, make_mask(2), "upload", params={"expires": "1h"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "expiry_refused")
    shown = (await call(api, "upload", "GET", f"/v1/masks/{name}")).json()
    assert (shown["digest"], shown["expires"]) == (make_mask(1).digest, None)


@pytest.mark.parametrize("path", ["rollout-1/../math", "rollout-1/versions/../../math", "rollout-"])
async def test_paths_that_only_begin_so_remove_nothing(api, path):
    await api.put("math", make_mask(0))
    async with api.client("upload") as client:
        request = client.build_request("DELETE", "http://test/v1/masks/x")
        request.url = request.url.copy_with(raw_path=f"/v1/masks/{path}".encode())
        assert (await client.send(request)).status_code in (400, 403, 404)
    assert (await call(api, "upload", "GET", "/v1/masks/math")).status_code == 200


@pytest.mark.parametrize("expires", ["", "soon", "0m", "-1h", "2020-01-01T00:00:00+00:00", "1y"])
async def test_an_expiry_that_is_no_time_to_come_is_refused(api, expires):
    refused = await api.put("rollout-1", make_mask(0), "upload", params={"expires": expires})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "expires"
    assert (await call(api, "upload", "GET", "/v1/masks/rollout-1")).status_code == 404


async def test_the_last_uploads_expiry_counts(api):
    def hours(shown):
        return round((datetime.fromisoformat(shown["expires"]).timestamp() - time.time()) / 3600)

    assert hours(await push(api, "rollout-1", 0)) == 1
    again = await push(api, "rollout-1", 0, "3h")
    assert (again["outcome"], hours(again)) == ("unchanged", 3)
    flips = bmt_core.symmetric_difference(make_mask(0), make_mask(1))
    pushed = await call(
        api,
        "upload",
        "PATCH",
        "/v1/masks/rollout-1",
        params={"parent": make_mask(0).digest, "digest": make_mask(1).digest, "expires": "5h"},
        content=bmt_core.encode(flips),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert hours(pushed.json()) == 5
    listed = (await call(api, "infer", "GET", "/v1/masks")).json()["data"]
    assert [hours(one) for one in listed] == [5]
    kept = await api.put("rollout-1", make_mask(2), "upload")
    assert kept.json()["expires"] is None
    assert not api.state.replica.expired(time.time() + 1e9)


@pytest.mark.found
async def test_servers_remove_what_has_expired_and_nothing_else(api, caplog):
    removed = []
    keeper = Housekeeper(
        api.state.registry,
        expired=api.state.replica.expired,
        expired_every_s=0.05,
        on_expired=lambda: removed.append(1),
    )
    await push(api, "rollout-gone", 0)
    await push(api, "rollout-gone", 1)
    await push(api, "rollout-alive", 0)
    await push(api, "rollout-pinned", 0)
    await api.put("math", make_mask(0))
    await call(api, "admin", "PUT", "/v1/masks/rollout-pinned/pin")
    for name in ("rollout-gone", "rollout-pinned"):
        await lapse(api, name)
    with caplog.at_level("INFO", logger="vllm.bmt_server"):
        keeper.start()
        try:
            async with asyncio.timeout(10):
                while not removed:
                    await asyncio.sleep(0.02)
        finally:
            await keeper.close()
        assert await keeper.remove_expired() == 0
    await api.state.replica.refresh("default", "rollout-gone")
    listed = (await call(api, "infer", "GET", "/v1/masks")).json()["data"]
    assert [one["name"] for one in listed] == ["math", "rollout-alive", "rollout-pinned"]
    assert removed == [1]
    [line] = [r.getMessage() for r in caplog.records if "expired at" in r.getMessage()]
    assert "rollout-gone of tenant default with 2 versions" in line


async def test_a_push_in_the_last_moment_keeps_the_mask(api):
    """The server's list may be older than the registry: the registry decides."""
    await push(api, "rollout-1", 0)
    await lapse(api, "rollout-1")
    stale = api.state.replica.expired(time.time())
    assert [s.name for s in stale] == ["rollout-1"]
    await push(api, "rollout-1", 1)
    keeper = Housekeeper(api.state.registry, expired=lambda now: stale)
    assert await keeper.remove_expired() == 0
    shown = (await call(api, "infer", "GET", "/v1/masks/rollout-1")).json()
    assert shown["digest"] == make_mask(1).digest


async def test_two_servers_remove_an_expired_mask_once(api):
    await push(api, "rollout-1", 0)
    await lapse(api, "rollout-1")
    stale, counted = api.state.replica.expired(time.time()), []
    keepers = [
        Housekeeper(
            api.state.registry, expired=lambda now: stale, on_expired=lambda: counted.append(1)
        )
        for _ in range(4)
    ]
    assert sorted(await asyncio.gather(*(k.remove_expired() for k in keepers))) == [0, 0, 0, 1]
    assert counted == [1]


async def test_a_key_reads_its_scopes_and_limits(api):
    for key, scopes in (("infer", ["infer"]), ("upload", ["upload"])):
        answer = await call(api, key, "GET", "/v1/me")
        assert answer.status_code == 200
        me = answer.json()
        assert (me["scopes"], me["tenant"]) == (scopes, "default")
        assert me["base"]["names"] == ["tiny"]
        assert me["base"]["fingerprint"] == api.state.settings.fingerprint
        limits = me["limits"]
        assert (limits["max_model_len"], limits["max_n"], limits["max_sparsity"]) == (128, 64, 0.05)
        secret = api.keys[key][8:]
        assert secret not in answer.text
        assert api.state.settings.registry_url not in answer.text
    assert (await call(api, "other", "GET", "/v1/me")).json()["tenant"] == "other"
    assert (await call(api, "", "GET", "/v1/me")).status_code == 401
