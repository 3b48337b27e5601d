"""Blobs as values of Redis, the default."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from functools import partial

from bmt_server.errors import NotFound
from bmt_server.ipc.blob import OBJECTS, PREFIX, blob_key, blob_ranges
from bmt_server.registry.blobs.lua import REMOVE
from bmt_server.registry.blobs.place import join
from bmt_server.registry.blobs.protocol import Removed, Staged
from bmt_server.registry.connection import BULK_S, RegistryConnection

LOOSE = PREFIX + "loose"
ORPHANS = PREFIX + "orphans"  # hash: file digest -> time first seen, seconds since 1970
_GENERATION = PREFIX + "generation"
_CHUNK = 256 * 1024
_PAGE = 500


class RedisBlobs:
    """Blobs in Redis; see `protocol.py`."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection

    async def check(self) -> None:
        (await join(self._connection)).check("")

    async def open(self) -> None:
        pass

    async def stage(self, digest: str, data: bytes) -> Staged:
        bulk, key = self._connection.bulk, blob_key(digest)
        new = await self._connection.call(lambda: bulk.set(key, data, nx=True), BULK_S)
        if not new and not await self._intact(digest, len(data)):
            await self._connection.call(lambda: bulk.set(key, data), BULK_S)
        return Staged()

    async def _intact(self, digest: str, size: int) -> bool:
        stored = await read_value(self._connection, digest, size)
        return await asyncio.to_thread(has_digest, stored, digest)

    async def discard(self, staged: Staged) -> None:
        pass

    async def read(self, digest: str, size: int) -> bytearray:
        data = await read_value(self._connection, digest, size)
        if not data:
            # A server that knows Redis alone, while another one moved the blob away.
            (await join(self._connection)).check("")
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return data

    async def sizes(self, digests: Sequence[str]) -> list[int]:
        bulk = self._connection.bulk

        async def read() -> list[int]:
            async with bulk.pipeline(transaction=False) as pipe:
                for digest in digests:
                    pipe.strlen(blob_key(digest))
                sizes: list[int] = await pipe.execute()
                return sizes

        return await self._connection.call(read, BULK_S) if digests else []

    async def stored_sizes(self, digests: Sequence[str]) -> list[int]:
        return await self.sizes(digests)

    async def pages(self) -> AsyncIterator[list[str]]:
        cursor, prefix, bulk = 0, blob_key("").encode(), self._connection.bulk
        while True:
            page = partial(bulk.scan, cursor, match=f"{blob_key('')}*", count=_PAGE)
            cursor, keys = await self._connection.call(page, BULK_S)
            yield [key.removeprefix(prefix).decode() for key in keys]
            if not cursor:
                return

    async def remove(self, digest: str, generation: int, since: float | None) -> Removed | None:
        keys = [_GENERATION, blob_key(digest), ORPHANS, OBJECTS, LOOSE]
        arguments = [generation, digest, raw(digest), "" if since is None else int(since)]
        quick = self._connection.quick
        done, *freed = await self._connection.call(
            lambda: quick.eval(REMOVE, len(keys), *keys, *arguments)
        )
        return Removed(bool(freed[0]), freed[0]) if done else None

    async def loose(self) -> Removed:
        return Removed()

    async def remove_loose(self, min_age_s: float) -> Removed:
        return Removed()

    async def find_strays(self) -> int:
        return 0


async def read_value(connection: RegistryConnection, digest: str, size: int) -> bytearray:
    """Read a file's bytes from Redis in pieces; empty if it has none."""
    key, data = blob_key(digest), bytearray()
    # One large reply would block this process's event loop for its whole length. The first
    # piece detects within a second that the registry hangs.
    within_s: float | None
    client, within_s = connection.quick, None
    for start, end in blob_ranges(data, size, _CHUNK):
        read = partial(client.getrange, key, start, end)
        data += await connection.call(read, within_s)
        client, within_s = connection.bulk, BULK_S
    return data


def has_digest(data: bytes | bytearray, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest


def raw(digest: str) -> bytes:
    """A file digest as 32 bytes; empty if it is not hexadecimal."""
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return b""
