"""Fixtures of the tests of blobs: one replica whose blobs are in each of the places."""

from __future__ import annotations

import secrets

import pytest
from bmt_server.registry.connection import RegistryConnection

from tests.support.blobs.object_store import S3
from tests.support.replica import replica
from tests.support.scenarios.registry import new_key


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    server = S3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def place_of(request, tmp_path, monkeypatch):
    """URL of a new place of a kind: `redis`, `file` or `s3`; empty for Redis."""

    def made(kind: str) -> str:
        if kind == "s3":
            for name, value in request.getfixturevalue("s3").environment().items():
                monkeypatch.setenv(name, value)
            return f"s3://masks/{secrets.token_hex(4)}"
        return "" if kind == "redis" else f"file://{tmp_path}/objects-{secrets.token_hex(2)}"

    return made


@pytest.fixture(params=["redis", "file", "s3"])
def place(request, place_of):
    return place_of(request.param)


@pytest.fixture
async def empty(valkey):
    """URL of a registry without anything, and an administrator's key of it."""
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    await store.close()
    return valkey.url, {"": "", "admin": await new_key(valkey.url)}


@pytest.fixture
async def api(empty, place, tmp_path):
    url, keys = empty
    async with replica(url, tmp_path / "cache", keys, blobs_url=place) as one:
        yield one


@pytest.fixture
def open_replica(empty, tmp_path):
    """Replicas on the registry, each with a cache of its own."""
    url, keys = empty

    def opened(place: str, **settings):
        folder = tmp_path / f"cache-{secrets.token_hex(4)}"
        return replica(url, folder, keys, blobs_url=place, **settings)

    return opened
