"""A registry looked at from outside of any server."""

from __future__ import annotations

from bmt_server.registry.api_keys import SCOPES, ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import check_consistency
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.registry import Registry


async def new_key(url: str) -> str:
    store = RegistryConnection(url)
    made = await ApiKeyStore(store).create(SCOPES)
    await store.close()
    assert made is not None
    return made[0]


async def looked_at(url: str, name: str = "m") -> tuple[NameState, list[str], int]:
    """State of a name, problems that `fsck` finds, and the number of orphans."""
    store = RegistryConnection(url)
    try:
        registry = Registry(store)
        (state,) = await registry.states([("default", name)])
        found = await check_consistency(registry)
        return state, [f"{p.code}: {p.what}" for p in found.problems], found.orphans
    finally:
        await store.close()
