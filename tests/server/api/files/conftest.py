"""A replica that keeps files in a folder."""

from __future__ import annotations

import pytest
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import replica

KEYS = {
    "infer": (("infer",), "default"),
    "upload": (("upload",), "default"),
    "admin": (("infer", "upload", "admin"), "default"),
    "other": (("infer", "upload", "admin"), "other"),
}


@pytest.fixture
def kept(tmp_path):
    """The folder of the files."""
    return tmp_path / "files"


@pytest.fixture
async def files(valkey, tmp_path, kept):
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    made = {"": ""}
    for name, (scopes, tenant) in KEYS.items():
        created = await ApiKeyStore(store).create(scopes, tenant=tenant)
        assert created is not None
        made[name] = created[0]
    await store.close()
    changes = {
        "files_url": kept.as_uri(),
        "max_file_bytes": 1 << 20,
        "tenant_files": 3,
        "tenant_files_bytes": 1 << 21,
    }
    async with replica(valkey.url, tmp_path / "cache", made, **changes) as one:
        yield one
