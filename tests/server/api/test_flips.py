"""Upload of flipped positions relative to another version, as a trainer does it."""

from __future__ import annotations

import asyncio

import bmt_core

from tests.support.replica import make_mask


async def flip(api, name, old, new, key="admin", **changes):
    flips = changes.pop("flips", bmt_core.symmetric_difference(old, new, dict(new.metadata)))
    data = flips if isinstance(flips, bytes) else bmt_core.encode(flips)
    params = {"parent": old.digest, "digest": new.digest, **changes.pop("params", {})}
    async with api.client(key) as client:
        return await client.patch(f"/v1/masks/{name}", content=data, params=params, **changes)


async def test_flips_make_the_expected_version(api):
    a, b = make_mask(0), make_mask(1, step=2)
    await api.put("m", a)
    answer = await flip(api, "m", a, b)
    assert answer.status_code == 201
    found = answer.json()
    assert (found["digest"], found["parent"], found["rev"]) == (b.digest, a.digest, 2)
    assert found["metadata"] == {"step": 2}
    async with api.client() as client:
        blob = (await client.get(f"/v1/blobs/{found['file_digest']}")).content
    assert bmt_core.decode(blob) == b
    assert (await api.ask("m")).json()["model"] == f"m@{b.digest[:12]}"
    again = await flip(api, "m", a, b)
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")


async def test_resident_loads_the_version_at_once(api):
    a, b = make_mask(0), make_mask(1)
    await api.put("m", a)
    answer = await flip(api, "m", a, b, params={"resident": "true"})
    async with asyncio.timeout(5):
        while answer.json()["id"] not in api.engine.in_memory:
            await asyncio.sleep(0.01)


async def test_refused_flips_store_nothing(api):
    a, b, c = make_mask(0), make_mask(1), make_mask(2)
    await api.put("m", a)
    other = bmt_core.Mask(bmt_core.Base("other", "cd" * 32), b.tensors, {})
    too_many = make_mask(3, zeros=400)
    cases = [
        (await flip(api, "m", a, b, flips=make_mask(4)), 412, "digest_mismatch"),
        (await flip(api, "m", c, b), 404, "version_not_found"),
        (await flip(api, "nothing", a, b), 404, "mask_not_found"),
        (await flip(api, "m", a, b, flips=other), 422, "base_mismatch"),
        (await flip(api, "m", a, b, flips=b"no mask"), 422, None),
        (await flip(api, "m", a, b, params={"digest": "xyz"}), 400, "digest_invalid"),
        (await flip(api, "m", a, too_many), 422, "too_many_zeros"),
        (await flip(api, "m", a, b, headers={"If-Match": f'"{c.digest}"'}), 412, None),
        (await flip(api, "m", a, b, key="infer"), 403, None),
        (await flip(api, "m", a, b, key=""), 401, None),
        (await flip(api, "m", a, b, key="other"), 404, "mask_not_found"),
    ]
    for answer, status, code in cases:
        assert answer.status_code == status, answer.text
        assert code is None or answer.json()["error"]["code"] == code
    async with api.client() as client:
        assert len((await client.get("/v1/masks/m/versions")).json()["data"]) == 1
