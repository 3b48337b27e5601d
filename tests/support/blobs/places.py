"""Blobs of a replica, looked at and damaged where they are."""

from __future__ import annotations

from typing import Any

from bmt_server.ipc.blob import OBJECTS, StoredObject, blob_key
from bmt_server.registry.blobs.in_objects import ObjectBlobs
from bmt_server.registry.blobs.in_redis import RedisBlobs

from tests.support.replica import Api


async def places(api: Api) -> tuple[int, int]:
    """Number of blobs in Redis, and of objects with a mask in the object store."""
    found = [
        len([d async for page in RedisBlobs(api.state.connection).pages() for d in page]),
        0,
    ]
    blobs = api.state.registry.blobs
    if isinstance(blobs, ObjectBlobs):
        names = [n async for page in blobs.store.pages() for n in page]
        found[1] = len([n for n in names if n.startswith("blobs/")])
    return found[0], found[1]


async def stored_object(api: Api, digest: str) -> StoredObject | None:
    record = await api.state.connection.quick.hget(OBJECTS, bytes.fromhex(digest))
    return StoredObject.parse(digest, record)


async def damage(api: Api, digest: str, how: str) -> None:
    """Change a blob's bytes; how: flip, cut or grow."""
    quick, record = api.state.connection.quick, await stored_object(api, digest)
    store: Any = getattr(api.state.registry.blobs, "store", None)
    data = bytearray(
        await store.get(record.name, record.size) if record else await quick.get(blob_key(digest))
    )
    if how == "flip":
        data[-1] ^= 1
    else:
        data = data[:-1] if how == "cut" else data + b"x"
    if record:
        await store.put(record.name, bytes(data))
    else:
        await quick.set(blob_key(digest), bytes(data))


async def lose(api: Api, digest: str) -> None:
    """Delete a blob's bytes, and nothing that says where they were."""
    record = await stored_object(api, digest)
    if record:
        await api.state.registry.blobs.store.delete([record.name])  # type: ignore[attr-defined]
    else:
        await api.state.connection.quick.delete(blob_key(digest))
