"""The precision that serves, where clients and operators see it."""

from __future__ import annotations

import asyncio

import bmt_core

from tests.support.replica import BASE, make_mask, replica


async def test_a_mask_of_the_base_is_one_version_for_every_precision(valkey, tmp_path):
    """Two servers of one registry, of which one serves a quantized copy."""
    quantized = {"precision": "int8", "quantized": True, "served_fingerprint": "cd" * 32}
    async with (
        replica(valkey.url, tmp_path / "a", precision="bf16", no_auth=True) as plain,
        replica(valkey.url, tmp_path / "b", no_auth=True, **quantized) as int8,
    ):
        mask = make_mask(0)
        assert (await plain.put("m", bmt_core.encode(mask), key="")).status_code == 201
        for api, precision in ((plain, "bf16"), (int8, "int8")):
            model = f"m@{mask.digest[:12]}"
            while (answer := await api.ask(model, key="")).status_code == 404:
                await asyncio.sleep(0.02)  # the other server's change is on its way
            assert answer.status_code == 200
            assert answer.headers["x-bmt-precision"] == precision
            async with api.client("") as client:
                base = (await client.get("/v1/me")).json()["base"]
            assert (base["fingerprint"], base["precision"]) == (BASE.fingerprint, precision)
            assert base["quantized"] == (precision == "int8")
            (info,) = [m for m in api.registry.collect() if m.name == "bmt_base_info"]
            labels = info.samples[0].labels
            assert labels["precision"] == precision
            assert labels["fingerprint"] == BASE.fingerprint
            assert labels["served"] == ("cd" * 32 if precision == "int8" else BASE.fingerprint)
