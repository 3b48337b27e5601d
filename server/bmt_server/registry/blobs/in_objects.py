"""Blobs as objects of an object store, with their records in Redis.

Blobs that Redis has are read too: those not moved yet, and uploads to servers of former builds,
which know Redis alone. `lua.py` says how uploads and collections stay out of each other's way.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from bmt_server.errors import ApiError, NotFound, Unavailable
from bmt_server.ipc.blob import OBJECTS, StoredObject, object_name
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.registry.blobs.in_redis import LOOSE, RedisBlobs, has_digest, raw, read_value
from bmt_server.registry.blobs.lua import ADD_LOOSE, ADOPT, CLAIM, CONFIRM
from bmt_server.registry.blobs.place import (
    OWNER,
    PLACE,
    RELEASED,
    Place,
    claim,
    forget,
    join,
    owner_of,
)
from bmt_server.registry.blobs.protocol import Removed, Staged
from bmt_server.registry.connection import BULK_S, RegistryConnection

logger = logging.getLogger("vllm.bmt_server")

_PAGE = 500
_AT_ONCE = 16
_READS = 3
T = TypeVar("T")


class ObjectBlobs:
    """Blobs in an object store; see `protocol.py`."""

    def __init__(self, connection: RegistryConnection, store: ObjectStore) -> None:
        self._connection = connection
        self.store = store
        self._redis = RedisBlobs(connection)
        self._place: Place | None = None
        self._opened = False

    async def check(self) -> None:
        place = await join(self._connection, self.store.url)
        place.check(self.store.url)
        self._place = place

    async def open(self) -> None:
        """Write the registry's id into the place, or compare it. Raises Unavailable, BlobsDown."""
        if not self._opened:
            await self._check_owner()
            self._opened = True

    async def _check_owner(self) -> None:
        if self._place is None:
            await self.check()
        assert self._place is not None
        place, url, quick = self._place, self.store.url, self._connection.quick
        found = await owner_of(self.store)
        if found is None and place.claimed:
            raise Unavailable(
                f"{url} has lost {OWNER}: the folder is not mounted, or the bucket was emptied. "
                "Restore it; if its blobs are to be uploaded again, delete the field `claimed` of "
                f"{PLACE} in Redis",
                code="blobs_lost",
            )
        if found in (None, RELEASED):
            found = await claim(self.store, place.id)
        if found != place.id:
            await forget(self._connection, url)
            raise Unavailable(
                f"{url} has the blobs of another registry; give each registry a prefix of its own",
                code="blobs_elsewhere",
            )
        if not await self._connection.call(lambda: quick.eval(CONFIRM, 1, PLACE, url)):
            self._place = None
            await self._check_owner()

    async def stage(self, digest: str, data: bytes) -> Staged:
        if self._place is None or self._place.writes != self.store.url:
            await self.check()  # raises before a byte is written elsewhere
        assert self._place is not None
        if not self._place.writes:
            return await self._redis.stage(digest, data)
        return await self.write(digest, data)

    async def write(self, digest: str, data: bytes) -> Staged:
        """Write an object of these bytes, unless an intact one is in use."""
        await self.open()
        record = await self._record(digest)
        if record is not None and await self._intact(record, len(data)):
            return Staged(self.store.url)
        new = StoredObject(digest, len(data), secrets.token_hex(8))
        quick = self._connection.quick
        await self._connection.call(lambda: quick.eval(ADD_LOOSE, 1, LOOSE, new.member))
        await self.store.put(new.name, data)
        return Staged(self.store.url, new, record)

    async def _intact(self, record: StoredObject, size: int) -> bool:
        try:
            stored = await self.store.get(record.name, size)
        except SizeDiffers:
            return False
        return stored is not None and await asyncio.to_thread(
            has_digest, stored, record.file_digest
        )

    async def discard(self, staged: Staged) -> None:
        if staged.written is not None:
            try:
                await self._remove([staged.written.member], 0)
            except ApiError as error:
                logger.info("An object that is not in use stays for now: %s.", error)

    async def read(self, digest: str, size: int) -> bytearray:
        data = bytearray()
        # A move between Redis and the store puts the bytes to one place before it takes them from
        # the other: look again.
        for _ in range(_READS):
            record = await self._record(digest)
            if record is not None:
                try:
                    found = await self.store.get(record.name, record.size)
                except SizeDiffers as error:
                    raise Unavailable(
                        f"{error}; upload the mask again", code="blob_damaged"
                    ) from None
                if found is not None:
                    return found
            data = await read_value(self._connection, digest, size)
            if data and len(data) == size:
                return data
        if not data:
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return data

    async def _record(self, digest: str) -> StoredObject | None:
        quick, field = self._connection.quick, raw(digest)
        return StoredObject.parse(
            digest, await self._connection.call(lambda: quick.hget(OBJECTS, field))
        )

    async def _records(self, digests: Sequence[str]) -> list[StoredObject | None]:
        if not digests:
            return []
        bulk, fields = self._connection.bulk, [raw(digest) for digest in digests]
        found = await self._connection.call(lambda: bulk.hmget(OBJECTS, fields), BULK_S)
        return [StoredObject.parse(d, r) for d, r in zip(digests, found, strict=True)]

    async def sizes(self, digests: Sequence[str]) -> list[int]:
        records = await self._records(digests)
        in_redis = await self._redis.sizes(digests)
        return [r.size if r else size for r, size in zip(records, in_redis, strict=True)]

    async def stored_sizes(self, digests: Sequence[str]) -> list[int]:
        records = await self._records(digests)
        in_redis = await self._redis.sizes(digests)

        async def one(record: StoredObject | None, size: int) -> int:
            return (await self.store.size(record.name) or size) if record else size

        return await gathered(
            [partial(one, record, size) for record, size in zip(records, in_redis, strict=True)]
        )

    async def pages(self) -> AsyncIterator[list[str]]:
        async for page in self._redis.pages():
            yield page
        async for page in self.recorded():
            yield page

    async def recorded(self) -> AsyncIterator[list[str]]:
        """Digests of all objects in use, in pages."""
        cursor, bulk = 0, self._connection.bulk
        while True:
            scan = partial(bulk.hscan, OBJECTS, cursor, count=_PAGE)
            cursor, found = await self._connection.call(scan, BULK_S)
            yield [digest.hex() for digest in found]
            if not int(cursor):
                return

    async def remove(self, digest: str, generation: int, since: float | None) -> Removed | None:
        return await self._redis.remove(digest, generation, since)

    async def loose(self) -> Removed:
        count = size = 0
        quick = self._connection.quick
        while True:
            page = await self._connection.call(
                partial(quick.zrange, LOOSE, count, count + _PAGE - 1)
            )
            size += sum(await self._sizes_of([name.decode() for name in page]))
            count += len(page)
            if len(page) < _PAGE:
                return Removed(count, size)

    async def remove_loose(self, min_age_s: float) -> Removed:
        quick, removed, size = self._connection.quick, 0, 0
        seen: set[str] = set()
        while True:
            page = await self._connection.call(
                partial(quick.zrange, LOOSE, "-inf", "+inf", byscore=True, offset=0, num=_PAGE)
            )
            names = [name.decode() for name in page if name.decode() not in seen]
            seen.update(names)
            done = await self._remove(names, min_age_s)
            removed, size = removed + done.blobs, size + done.bytes
            # Oldest first: a page that is not removed has only younger ones after it.
            if not page or done.blobs < len(page):
                return Removed(removed, size)

    async def _remove(self, names: Sequence[str], min_age_s: float) -> Removed:
        """Remove the loose ones of these objects that have been so for some seconds."""
        arguments: list[Any] = [min_age_s]
        for name in names:
            arguments += [name, raw(name.partition("-")[0])]
        quick = self._connection.quick
        claimed = [
            name.decode()
            for name in await self._connection.call(
                lambda: quick.eval(CLAIM, 2, LOOSE, OBJECTS, *arguments)
            )
        ]
        if not claimed:
            return Removed()
        sizes = await self._sizes_of(claimed)
        await self.store.delete([object_name(name) for name in claimed])
        await self._connection.call(lambda: quick.zrem(LOOSE, *claimed))
        return Removed(len(claimed), sum(sizes))

    async def _sizes_of(self, members: Sequence[str]) -> list[int]:
        return await gathered([partial(self.store.size, object_name(m)) for m in members])

    async def find_strays(self) -> int:
        # Each time: the objects of another registry would all be strays, and removed.
        await self._check_owner()
        found = 0
        async for page in self.store.pages():
            members = [m for path in page if (m := path.rpartition("/")[2]) and _ours(path, m)]
            for at in range(0, len(members), _PAGE):
                arguments: list[Any] = []
                for member in members[at : at + _PAGE]:
                    arguments += [member, raw(member.partition("-")[0])]
                quick = self._connection.quick
                found += await self._connection.call(
                    partial(quick.eval, ADOPT, 2, LOOSE, OBJECTS, *arguments)
                )
        return found


async def gathered(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Results of calls of the object store, of which some run at once."""
    results: list[T] = []
    for at in range(0, len(calls), _AT_ONCE):
        results += await asyncio.gather(*(call() for call in calls[at : at + _AT_ONCE]))
    return results


def _ours(path: str, member: str) -> bool:
    digest, _, mark = member.partition("-")
    return len(raw(digest)) == 32 and bool(mark) and path == object_name(member)
