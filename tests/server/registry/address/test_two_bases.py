"""Servers of two base models on one Redis: on one registry, and on registries apart by a prefix."""

from __future__ import annotations

import contextlib
import logging

import bmt_core
import pytest
import redis
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from bmt_server.registry.registry import Registry
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher

from tests.support.replica import make_mask, replica, settings_of

OTHER = bmt_core.Base(model_id="other/tiny", fingerprint="cd" * 32)


def with_prefix(url: str, prefix: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


@contextlib.asynccontextmanager
async def other_base(url, folder, keys):
    async with replica(url, folder, keys, fingerprint=OTHER.fingerprint, model_id="other") as one:
        yield one


async def models(api) -> list[str]:
    async with api.client() as client:
        return [m["id"] for m in (await client.get("/v1/models")).json()["data"]]


@pytest.mark.found
async def test_masks_of_another_base_are_not_listed_and_not_found(api, valkey, tmp_path, caplog):
    async with other_base(valkey.url, tmp_path / "other", api.keys) as second:
        assert (await api.put("mine", make_mask(0))).status_code == 201
        theirs = make_mask(1, base=OTHER)
        answer = await second.put("theirs", theirs, params={"alias": "prod"})
        assert answer.status_code == 201
        await api.state.replica.refresh("default", "theirs")
        await second.state.replica.refresh("default", "mine")
        assert await models(api) == ["tiny", "mine"]
        assert await models(second) == ["tiny", "theirs", "theirs:prod"]
        for model in ("theirs", "theirs:prod", f"theirs@{theirs.digest[:12]}"):
            refused = await api.ask(model)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (404, "base_mismatch")
            assert OTHER.model_id in error["message"]
            assert (await second.ask(model)).status_code == 200
        async with api.client() as client:
            assert (await client.get("/v1/models/theirs")).status_code == 404
            assert (await client.put("/v1/masks/theirs/pin")).status_code == 404
            flips = {"parent": theirs.digest, "digest": theirs.digest}
            data = bmt_core.encode(make_mask(3))
            answer = await client.patch("/v1/masks/theirs", params=flips, content=data)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "base_mismatch")
            # It can be managed from here all the same.
            assert (await client.get("/v1/masks/theirs")).status_code == 200
            assert (await client.delete("/v1/masks/theirs/pin")).status_code == 200
        # A pin is for the servers of its base.
        async with second.client() as client:
            assert (await client.put("/v1/masks/theirs/pin")).status_code == 200
        caplog.clear()
        await api.state.replica.refresh("default", "theirs")
        assert api.engine.loads == []
        assert "preload" not in caplog.text
        # One name for both: the last upload has it, and the log has a line.
        with caplog.at_level(logging.WARNING):
            assert (await second.put("mine", make_mask(4, base=OTHER))).status_code == 201
        assert "moves from a mask of base" in caplog.text
        await api.state.replica.refresh("default", "mine")
        assert (await api.ask("mine")).status_code == 404
        assert (await api.ask(f"mine@{make_mask(0).digest[:12]}")).status_code == 200


@pytest.mark.found
async def test_registries_with_prefixes_share_nothing(api, valkey, tmp_path):
    url = with_prefix(valkey.url, "team-b")
    connection = RegistryConnection(url)
    made = await ApiKeyStore(connection).create(("admin", "infer", "upload"))
    assert made is not None
    assert (await api.put("m", make_mask(0))).status_code == 201
    async with other_base(url, tmp_path / "other", {"admin": made[0]}) as second:
        theirs = make_mask(1, base=OTHER)
        answer = await second.put("m", theirs)
        assert (answer.status_code, answer.json()["rev"], answer.json()["id"]) == (201, 1, 1)
        assert await models(second) == ["tiny", "m"]
        assert await models(api) == ["tiny", "m"]
        for one, code in ((api, 201), (second, 422)):
            assert (await one.put("n", make_mask(2))).status_code == code
        assert (await second.ask("m")).status_code == 200
        # Keys are the prefix's own.
        async with second.client() as client:
            client.headers["Authorization"] = f"Bearer {api.keys['admin']}"
            assert (await client.get("/v1/masks")).status_code == 401
    orphan = "ab" * 32
    await connection.quick.set(blob_key(orphan), b"x")
    registry = Registry(connection)
    found = await check_consistency(registry)
    assert (found.names, found.blobs, found.orphans, found.problems) == (1, 1, 1, [])
    assert (await collect_orphans(registry, min_age_s=0)).removed == 1
    await connection.close()
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as raw:
        mine, others = raw.keys("{bmt:team-b}:*"), raw.keys(f"{PREFIX}*")
        assert {key.split(b":")[2] for key in mine} >= {b"name", b"versions", b"blob", b"events"}
        assert len(raw.keys("*")) == len(mine) + len(others)
        assert len(raw.keys(f"{PREFIX}blob:*")) == 2
    # A worker on another node reads the same blob.
    file = bmt_core.encode(theirs)
    source = MaskSource("default", theirs.digest, bmt_core.file_digest(file))
    settings = settings_of(url, tmp_path / "worker", fingerprint=OTHER.fingerprint)
    assert bytes(MaskFetcher(settings)._fetch(source)) == file


def test_prefix_of_a_url():
    for url in (
        "redis://:p%3Fw@h/1?socket_timeout=3",
        "unix:///run/r.sock",
        "rediss+cluster://a,b",
    ):
        plain = RegistryAddress.parse(url)
        one = RegistryAddress.parse(with_prefix(url, "team-a"))
        assert (one.nodes, one.kind, dict(one.options)) == (
            plain.nodes,
            plain.kind,
            dict(plain.options),
        )
        assert (plain.key("{bmt}:names"), one.key("{bmt}:names")) == (
            "{bmt}:names",
            "{bmt:team-a}:names",
        )
        assert "team-a" in str(one)
    for bad in ("", "a}b", "A", "a b", "x" * 65, "a&prefix=b"):
        with pytest.raises(ValueError, match="prefix"):
            RegistryAddress.parse(with_prefix("redis://h", bad))
