"""Moves of all blobs between Redis and an object store, while servers run.

Servers write to the new place from the first step on, and read both. Each blob is put to the new
place before one script takes it from the old one, so a move may end at any point and be run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bmt_server.errors import Unavailable
from bmt_server.ipc.blob import OBJECTS, StoredObject, blob_key
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.registry.blobs.in_objects import ObjectBlobs
from bmt_server.registry.blobs.in_redis import LOOSE, RedisBlobs, has_digest, raw, read_value
from bmt_server.registry.blobs.lua import LEAVE, TO_OBJECT, TO_REDIS
from bmt_server.registry.blobs.place import PLACE, RELEASED, forget, join, turn, write_owner
from bmt_server.registry.blobs.protocol import Blobs
from bmt_server.registry.connection import BULK_S, RegistryConnection

# Blobs in transfer at once; each is in memory as a whole.
_AT_ONCE = 4
_PASSES = 20
# Objects that a running request may still read after its blob has moved to Redis.
_READ_S = 60.0
_PATIENCE_S = 30.0


@dataclass(slots=True)
class MoveReport:
    """Result of a move: blobs and bytes that moved, and digests of damaged ones, which stay."""

    blobs: int = 0
    bytes: int = 0
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Places and numbers of a registry's blobs. writes: URL of new blobs, or `redis`."""

    url: str
    writes: str
    in_redis: int
    in_objects: int
    loose: int


async def whereabouts(connection: RegistryConnection) -> Whereabouts:
    """Read the registry's record and count its blobs. Raises RegistryDown."""
    quick = connection.quick
    place = await join(connection)
    counts = await connection.call(lambda: _counts(quick))
    in_redis = 0
    async for page in RedisBlobs(connection).pages():
        in_redis += len(page)
    return Whereabouts(place.url, place.writes or "redis", in_redis, *counts)


async def _counts(quick: Any) -> tuple[int, int]:
    return int(await quick.hlen(OBJECTS)), int(await quick.zcard(LOOSE))


class Mover:
    """Moves the blobs of one registry between Redis and `url`.

    on_moved: called with the report after each blob. read_s: longest read of an
    object by a request. blobs: of `url`, if there are some already.
    """

    def __init__(
        self,
        connection: RegistryConnection,
        url: str,
        on_moved: Callable[[MoveReport], None] = lambda report: None,
        read_s: float = _READ_S,
        blobs: ObjectBlobs | None = None,
    ) -> None:
        self._connection = connection
        self._blobs = blobs or ObjectBlobs(connection, ObjectStore(url))
        self._on_moved = on_moved
        self._read_s = read_s
        self._damaged: set[str] = set()
        self.report = MoveReport()

    async def out(self, *, force: bool = False) -> MoveReport:
        """Move all blobs out of Redis. Raises RegistryDown, BlobsDown, Unavailable.

        force: also if no server has been started with the place yet. Other servers answer 503 for
        blobs that have moved.
        """
        url = self._blobs.store.url
        place = await join(self._connection)
        if place.settled:
            place.check(url)
        elif place.url != url and not force:
            raise Unavailable(
                f"no server of this registry was started with --blobs {url}, and servers without "
                "it cannot read what is moved; restart them with it first, or give --force",
                code="blobs_elsewhere",
            )
        # Before the first server writes there.
        await self._blobs.check()
        await self._blobs.open()
        await turn(self._connection, url, outside=True)
        return await self.sweep()

    async def sweep(self) -> MoveReport:
        """Move what is in Redis now."""
        return await self._repeat(RedisBlobs(self._connection).pages, self._out)

    async def back(self) -> MoveReport:
        """Move all blobs into Redis, and forget the place. Raises RegistryFull too."""
        if not (await join(self._connection)).settled:
            await forget(self._connection, self._blobs.store.url)
            return self.report
        await self._blobs.check()
        await self._blobs.open()
        await turn(self._connection, self._blobs.store.url, outside=False)
        report = await self._repeat(self._blobs.recorded, self._back)
        await self._leave()
        return report

    async def _repeat(
        self,
        pages: Callable[[], AsyncIterator[list[str]]],
        move: Callable[[str], Awaitable[int]],
    ) -> MoveReport:
        """Move until a pass finds nothing: uploads that had begun elsewhere end meanwhile."""
        for _ in range(_PASSES):
            found = 0
            async for page in pages():
                digests = [d for d in page if d not in self._damaged]
                found += len(digests)
                for at in range(0, len(digests), _AT_ONCE):
                    await asyncio.gather(*(self._one(move, d) for d in digests[at : at + _AT_ONCE]))
            if not found:
                break
        self.report.damaged = tuple(sorted(self._damaged))
        return self.report

    async def _one(self, move: Callable[[str], Awaitable[int]], digest: str) -> None:
        size = await move(digest)
        if size:
            self.report.blobs += 1
            self.report.bytes += size
            self._on_moved(self.report)

    async def _out(self, digest: str) -> int:
        """Move one blob to the object store. Returns its bytes; 0 if it did not move."""
        connection, key = self._connection, blob_key(digest)
        size = (await RedisBlobs(connection).sizes([digest]))[0]
        data = bytes(await read_value(connection, digest, size))
        if not size or len(data) != size:
            return 0  # removed or moved meanwhile
        if not await asyncio.to_thread(has_digest, data, digest):
            self._damaged.add(digest)
            return 0
        staged = await self._blobs.write(digest, data)
        written = staged.written
        if staged.replaces is not None:
            # Damaged in the store: the next upload of this file replaces it.
            self._damaged.add(digest)
            await self._blobs.discard(staged)
            return 0
        record, member = (written.record, written.member) if written else ("", "")
        done = await connection.call(
            lambda: connection.quick.eval(
                TO_OBJECT, 3, key, OBJECTS, LOOSE, raw(digest), record, member
            )
        )
        return size if done else 0

    async def _back(self, digest: str) -> int:
        """Move one blob into Redis. Returns its bytes; 0 if it did not move."""
        connection = self._connection
        record = await connection.call(lambda: connection.quick.hget(OBJECTS, raw(digest)))
        stored = StoredObject.parse(digest, record)
        if stored is None:
            return 0
        try:
            data = await self._blobs.store.get(stored.name, stored.size)
        except SizeDiffers:
            data = None
        if data is None or not await asyncio.to_thread(has_digest, data, digest):
            self._damaged.add(digest)
            return 0
        arguments = [raw(digest), stored.record, stored.member, bytes(data)]
        keys = [blob_key(digest), OBJECTS, LOOSE]
        done = await connection.call(
            lambda: connection.bulk.eval(TO_REDIS, 3, *keys, *arguments), BULK_S
        )
        return stored.size if done else 0

    async def _leave(self) -> None:
        """Remove the objects once no request can read them, and the record of the place."""
        deadline = time.monotonic() + 2 * self._read_s + _PATIENCE_S
        while True:
            await self._blobs.remove_loose(self._read_s)
            if not (await self._blobs.loose()).blobs:
                break
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"objects are still in {self._blobs.store.url}; run the command again to "
                    "remove them",
                    code="registry_busy",
                )
            await asyncio.sleep(min(1.0, self._read_s))
        gone = await self._connection.call(
            lambda: self._connection.quick.eval(LEAVE, 3, PLACE, OBJECTS, LOOSE)
        )
        if gone:
            await write_owner(self._blobs.store, RELEASED)


async def sweep(connection: RegistryConnection, blobs: Blobs) -> MoveReport:
    """Move what servers of former builds wrote to Redis, if blobs belong to an object store."""
    if not isinstance(blobs, ObjectBlobs):
        return MoveReport()
    url = blobs.store.url
    if (await join(connection)).writes != url:
        return MoveReport()
    return await Mover(connection, url, blobs=blobs).sweep()


async def left_in_redis(connection: RegistryConnection) -> str:
    """A sentence about blobs that stay in Redis until they are moved; empty if there are none."""
    place = await join(connection)
    if not place.url or place.writes:
        return ""
    return (
        "the registry's masks are in Redis, and new ones go there until they are moved: "
        f"bmt-server blobs move {place.url}"
    )
