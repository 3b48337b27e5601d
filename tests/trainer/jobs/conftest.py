"""A real Valkey, and a server of jobs for the tiny model."""

from __future__ import annotations

import pytest
from bmt_server.registry.connection import RegistryConnection

from tests.support.served import Valkey
from tests.support.training.job_server import job_server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    store = Valkey(tmp_path_factory.mktemp("valkey"))
    store.start()
    yield store
    store.close()


@pytest.fixture
async def jobs(valkey, tmp_path, checkpoint):
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    await store.close()
    async with job_server(valkey.url, tmp_path, checkpoint) as server:
        yield server
