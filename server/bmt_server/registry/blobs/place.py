"""The registry's record of where its blobs are, which all servers must agree with.

The hash `{bmt}:place` has the URL of an object store, the URL to which blobs are written (empty
while that is Redis) and the registry's id, which the object store holds too. Without a URL all
blobs are in Redis. The URL binds other servers from the time at which the object store has the id.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from bmt_server.errors import Unavailable
from bmt_server.ipc.blob import OBJECTS, PREFIX
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.registry.blobs.lua import FORGET, JOIN, TURN
from bmt_server.registry.connection import RegistryConnection

OWNER = "bmt-registry.json"  # object that names the registry
# The id in an object store whose registry has moved away. It is written and not removed: another
# process may compare the owner at that time, and a missing one means that the store is lost.
RELEASED = ""
PLACE = PREFIX + "place"
_NAMES = PREFIX + "names"


@dataclass(frozen=True, slots=True)
class Place:
    """The record. writes: URL to which blobs are written, empty for Redis.

    claimed: the object store has the registry's id. used: objects are in use there.
    """

    url: str = ""
    writes: str = ""
    id: str = ""
    claimed: bool = False
    used: bool = False

    @property
    def settled(self) -> bool:
        """True if blobs are or may be there: the record gives way to no other URL."""
        return self.claimed or self.used

    def check(self, url: str) -> None:
        """Raise Unavailable (`blobs_elsewhere`) if a server with `url` cannot read all blobs.

        url: of the server's object store; empty for a server that knows Redis alone.
        """
        if url == self.url or (not url and not self.writes and not self.used):
            return
        own = f"this server was started with --blobs {url}" if url else "this server has no --blobs"
        raise Unavailable(
            f"the registry's blobs are in {self.url} and {own}; start it with --blobs {self.url}, "
            "or move them by bmt-server blobs move",
            code="blobs_elsewhere",
        )


async def join(connection: RegistryConnection, url: str = "") -> Place:
    """The registry's record, after it took over `url` if it has none that is settled.

    Raises RegistryDown.
    """
    quick = connection.quick
    reply = await connection.call(
        lambda: quick.eval(JOIN, 3, PLACE, OBJECTS, _NAMES, url, secrets.token_hex(16))
    )
    *texts, used = reply
    url, writes, identity, claimed = (text.decode() for text in texts)
    return Place(url, writes, identity, bool(claimed), bool(used))


async def forget(connection: RegistryConnection, url: str) -> None:
    """Forget a place that has never been confirmed, such as one of another registry."""
    await connection.call(lambda: connection.quick.eval(FORGET, 2, PLACE, OBJECTS, url))


async def turn(connection: RegistryConnection, url: str, *, outside: bool) -> None:
    """Let servers write blobs to the place `url` from now on, or to Redis. Raises Unavailable."""
    arguments = [url, secrets.token_hex(16), url if outside else ""]
    other = await connection.call(lambda: connection.quick.eval(TURN, 1, PLACE, *arguments))
    if other:
        raise Unavailable(
            f"the registry's blobs are in {other.decode()}; move them to redis first, and then to "
            f"{url}",
            code="blobs_elsewhere",
        )


async def record_copy(connection: RegistryConnection, url: str) -> None:
    """Record another object store that holds a copy of the recorded one. Raises Unavailable."""
    store, place = ObjectStore(url), await join(connection)
    if not place.url or await owner_of(store) != place.id:
        raise Unavailable(
            f"{store.url} is no copy of {place.url or 'an object store'}: it lacks this registry's "
            f"{OWNER}",
            code="blobs_elsewhere",
        )
    fields = {"url": store.url, "writes": store.url if place.writes else ""}
    await connection.call(lambda: connection.quick.hset(PLACE, mapping=fields))


async def owner_of(store: ObjectStore) -> str | None:
    """The registry's id in an object store; None without one, and RELEASED after a move away."""
    return (await _read_owner(store))[1]


async def claim(store: ObjectStore, identity: str) -> str | None:
    """Write a registry's id into a place that has none or was left; return the id that is there.

    One of several registries that do so at the same time has the place: each write is conditional.
    """
    written, owner = await _read_owner(store)
    if owner in (None, RELEASED):
        await store.swap(OWNER, _owner(identity), written)
        return await owner_of(store)
    return owner


async def _read_owner(store: ObjectStore) -> tuple[bytes | None, str | None]:
    """The object as it is, and the id in it."""
    try:
        found = await store.get(OWNER)
        if found is None:
            return None, None
        return bytes(found), str(json.loads(found)["registry"])
    except (SizeDiffers, ValueError, KeyError, TypeError):
        return b"", "unreadable"


async def write_owner(store: ObjectStore, identity: str) -> None:
    """Write a registry's id, or RELEASED, into an object store."""
    await store.put(OWNER, _owner(identity))


def _owner(identity: str) -> bytes:
    return json.dumps({"registry": identity}).encode()
