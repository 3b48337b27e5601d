"""The store of API keys on an empty registry."""

from __future__ import annotations

import pytest
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection


@pytest.fixture
async def store(valkey):
    connection = RegistryConnection(valkey.url)
    await connection.quick.flushall()
    yield ApiKeyStore(connection)
    await connection.close()
