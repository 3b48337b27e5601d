"""A registry looked at from outside of any server."""

from __future__ import annotations

from bmt_server.registry.api_keys import SCOPES, KeyStore
from bmt_server.registry.connection import Store
from bmt_server.registry.maintenance import check
from bmt_server.registry.registry import Registry
from bmt_server.registry.schemas import NameState


async def new_key(url: str) -> str:
    store = Store(url)
    made = await KeyStore(store).create(SCOPES)
    await store.close()
    assert made is not None
    return made[0]


async def looked_at(url: str, name: str = "m") -> tuple[NameState, list[str], int]:
    """What the registry holds, what `fsck` says of it, and orphans."""
    store = Store(url)
    try:
        registry = Registry(store)
        (state,) = await registry.states([("default", name)])
        found = await check(registry)
        return state, [f"{p.code}: {p.what}" for p in found.problems], found.orphans
    finally:
        await store.close()
