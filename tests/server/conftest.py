"""Fixtures of the server tests: a real Valkey for each module, one replica without an engine."""

from __future__ import annotations

import logging

import pytest
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import replica
from tests.support.served import Valkey


@pytest.fixture(autouse=True)
def log_level():
    """The level that vLLM's logger has in a server; here other libraries may have set another."""
    logger = logging.getLogger("vllm")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    """A registry that a test may kill and start again."""
    store = Valkey(tmp_path_factory.mktemp("valkey"))
    store.start()
    yield store
    store.close()


@pytest.fixture
async def api(valkey, tmp_path):
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    made = {"": ""}
    for name, scopes, tenant in (
        ("infer", ("infer",), "default"),
        ("upload", ("upload",), "default"),
        ("promote", ("promote",), "default"),
        ("admin", ("infer", "upload", "admin"), "default"),
        ("other", ("infer", "upload", "admin"), "other"),
    ):
        created = await ApiKeyStore(store).create(scopes, tenant=tenant)
        assert created is not None
        made[name] = created[0]
    await store.close()
    async with replica(valkey.url, tmp_path / "cache", made) as one:
        yield one
