"""Files of tenants: records in the registry, bytes in a folder or an object store.

    {bmt}:files:<tenant>           hash: file id -> record, JSON
    {bmt}:files-ready:<tenant>     sorted set of the ids that can be read, by time of creation
    {bmt}:files-changing:<tenant>  sorted set of the others, which arrive or go
    {bmt}:file-bytes               hash: tenant -> bytes of all its records

A record is there before the bytes, in the state `pending`, and after them, in the state `deleting`:
so whatever a server that dies leaves behind has a record, and the tenant's next upload removes both
after `_STALE_S`. Ids are random; a path has none but the id and the tenant's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import BinaryIO

from bmt_server.errors import ApiError, BlobsDown, NotFound, PayloadTooLarge, Unavailable
from bmt_server.ipc.blob import PREFIX
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.registry.connection import BULK_S, RegistryConnection
from bmt_server.registry.durability import Durability
from bmt_server.registry.files.record import FILE_ID, FileRecord, read_record
from bmt_server.registry.files.scripts import FORGET, REMOVE, REPLACE, RESERVE
from bmt_server.settings import Settings

logger = logging.getLogger("vllm.bmt_server")

_BYTES = PREFIX + "file-bytes"
_WRITTEN = PREFIX + "written"
#: Bound on one transfer of a file, in seconds, and the age of a record that was left behind.
TRANSFER_S = 900.0
_STALE_S = 3600
# Records that are read and parsed at once: other requests have their turn in between.
_PIECE = 200


class FileStore:
    """Files of all tenants. most_files, most_bytes: of one tenant, 0 for any number.

    Methods raise RegistryDown, BlobsDown, and NotFound for what is another tenant's.
    """

    def __init__(
        self,
        connection: RegistryConnection,
        objects: ObjectStore,
        *,
        replicas: int = 0,
        most_files: int = 0,
        most_bytes: int = 0,
    ) -> None:
        self._connection, self._objects = connection, objects
        self._durability = Durability(connection, replicas)
        self._most_files, self._most_bytes = most_files, most_bytes

    @classmethod
    def of_settings(cls, connection: RegistryConnection, settings: Settings) -> FileStore | None:
        """The store of a server; None without a place for files."""
        if not settings.files_url:
            return None
        return cls(
            connection,
            ObjectStore(settings.files_url, TRANSFER_S, holds="files"),
            replicas=settings.registry_replicas,
            most_files=settings.tenant_files,
            most_bytes=settings.tenant_files_bytes,
        )

    @property
    def objects(self) -> ObjectStore:
        """The place, which has the answers of batches that run too."""
        return self._objects

    async def add(self, record: FileRecord, file: BinaryIO) -> FileRecord:
        """Keep a file: all of it, or nothing. Raises PayloadTooLarge beyond the quota."""
        await self._sweep(record.tenant)
        outcome, detail = await self._run(
            RESERVE,
            record.tenant,
            record.id,
            record.model_dump_json(),
            str(record.bytes),
            str(self._most_files),
            str(self._most_bytes),
            str(record.created_at),
        )
        if outcome == "over_quota":
            unreadable = await self._unreadable(record.tenant)
            files, stored = map(int, detail.split())
            raise self._over_quota(record, files, stored, unreadable)
        ready = record.model_copy(update={"state": "ready"})
        try:
            await self._objects.put_file(record.object_name, file)
            outcome, _ = await self._replace(record, ready)
        except ApiError:
            # The registry may be away as well; then the next sweep removes what is there. If only
            # its answer was lost, the record is ready, and may not outlive its bytes as such.
            with contextlib.suppress(ApiError):
                await self._replace(ready, record)
                await self._remove(record)
            raise
        if outcome != "ok":
            raise Unavailable("the file was removed while it arrived; upload it again")
        return ready

    async def left(self, tenant: str) -> int | None:
        """Bytes of a tenant's quota that are left; None without a quota."""
        if not self._most_bytes:
            return None
        quick = self._connection.quick
        stored = await self._connection.call(lambda: quick.hget(_BYTES, tenant))
        return self._most_bytes - int(stored or 0)

    async def get(self, tenant: str, file_id: str) -> FileRecord:
        """One file's record. Raises NotFound."""
        found = await self._find(tenant, file_id)
        if found.state != "ready":
            raise _not_found(file_id)
        return found

    async def of_tenant(
        self, tenant: str, after: str | None = None, *, oldest_first: bool = False
    ) -> AsyncIterator[FileRecord]:
        """A tenant's files, the newest first, from the one after `after`. Raises NotFound."""
        bulk, key, start = self._connection.bulk, _ready(tenant), 0
        if after is not None:
            rank = bulk.zrank if oldest_first else bulk.zrevrank
            found = await self._connection.call(lambda: rank(key, after))
            if found is None:
                raise NotFound(f"no file {after[:64]}", code="file_not_found", param="after")
            start = found + 1
        part = bulk.zrange if oldest_first else bulk.zrevrange
        ids = await self._connection.call(lambda: part(key, start, -1), BULK_S)
        for at in range(0, len(ids), _PIECE):
            for record in await self._records(tenant, ids[at : at + _PIECE]):
                if record.state == "ready":
                    yield record

    async def read(self, record: FileRecord) -> AsyncIterator[bytes]:
        """A file's bytes, in pieces; the last one follows when their digest is right."""
        digest, last = hashlib.sha256(), b""
        try:
            async for piece in self._objects.stream(record.object_name, record.bytes):
                if last:
                    yield last
                digest.update(piece)
                last = piece
        except (FileNotFoundError, SizeDiffers):
            last = b""
        if digest.hexdigest() != record.sha256:
            logger.error("The bytes of %s are damaged or missing.", record.object_name)
            raise BlobsDown(
                f"the bytes of {record.id} are damaged or missing; delete it and upload it again",
                code="file_damaged",
            )
        yield last

    async def delete(self, tenant: str, file_id: str) -> None:
        """Remove a file, also one whose record cannot be read. Raises NotFound."""
        raw = await self._raw(tenant, file_id)
        if raw is not None and read_record(raw) is None:
            await self._objects.delete([f"{tenant}/{file_id}"])
            await self._run(FORGET, tenant, file_id, raw)
            return
        record = await self._find(tenant, file_id)
        if record.state == "pending":
            raise _not_found(file_id)
        deleting = record.model_copy(update={"state": "deleting"})
        # One that is being deleted already is deleted again: the first try may have failed, and
        # its bytes are still there.
        if record.state == "ready":
            outcome, _ = await self._replace(record, deleting)
            if outcome != "ok":
                raise _not_found(file_id)
        await self._remove(deleting)

    async def _find(self, tenant: str, file_id: str) -> FileRecord:
        """One file's record in any state. Raises NotFound."""
        found = read_record(await self._raw(tenant, file_id))
        if found is None or found.tenant != tenant:
            raise _not_found(file_id)
        return found

    async def _raw(self, tenant: str, file_id: str) -> bytes | None:
        if not FILE_ID.fullmatch(file_id):
            return None
        quick = self._connection.quick
        data: bytes | None = await self._connection.call(lambda: quick.hget(_key(tenant), file_id))
        return data

    async def _unreadable(self, tenant: str) -> list[str]:
        """Ids of a tenant's records that count in its quota, and that this version cannot read."""
        bulk, found, cursor = self._connection.bulk, set[str](), 0
        while True:
            read = partial(bulk.hscan, _key(tenant), cursor, count=_PIECE)
            cursor, page = await self._connection.call(read, BULK_S)
            found |= {id.decode() for id, value in page.items() if read_record(value) is None}
            if not cursor:
                return sorted(found)

    async def _sweep(self, tenant: str) -> None:
        """Remove what servers that died have left behind of a tenant."""
        before, bulk = int(time.time()) - _STALE_S, self._connection.bulk
        ids = await self._connection.call(
            lambda: bulk.zrangebyscore(_changing(tenant), "-inf", before, start=0, num=_PIECE)
        )
        for record in await self._records(tenant, ids):
            if record.state != "ready" and record.created_at < before:
                logger.warning("Removing %s, which was left behind.", record.object_name)
                await self._remove(record)

    async def _remove(self, record: FileRecord) -> None:
        await self._objects.delete([record.object_name])
        await self._run(REMOVE, record.tenant, record.id, str(record.bytes))

    async def _records(self, tenant: str, ids: Sequence[bytes]) -> list[FileRecord]:
        if not ids:
            return []
        bulk = self._connection.bulk
        stored = await self._connection.call(lambda: bulk.hmget(_key(tenant), ids), BULK_S)
        return [record for value in stored if (record := read_record(value)) is not None]

    async def _replace(self, before: FileRecord, after: FileRecord) -> tuple[str, str]:
        texts = (before.model_dump_json(), after.model_dump_json())
        ready = "1" if after.state == "ready" else ""
        return await self._run(
            REPLACE, before.tenant, before.id, *texts, ready, str(before.created_at)
        )

    async def _run(self, source: str, tenant: str, *args: str | bytes) -> tuple[str, str]:
        keys = [_key(tenant), _BYTES, _WRITTEN, _ready(tenant), _changing(tenant)]
        reply, confirmed = await self._durability.run(source, keys, [tenant, *args])
        outcome, detail = (part.decode() for part in reply)
        if outcome == "ok":
            self._durability.check(confirmed)
        return outcome, detail

    def _over_quota(
        self, record: FileRecord, files: int, stored: int, unreadable: Sequence[str]
    ) -> PayloadTooLarge:
        allowed = []
        if self._most_files:
            allowed.append(f"{files} of {self._most_files} files")
        if self._most_bytes:
            allowed.append(
                f"{stored} of {self._most_bytes} bytes, and this file has {record.bytes}"
            )
        lost = f"{len(unreadable)} cannot be read, as {unreadable[0]}; " if unreadable else ""
        return PayloadTooLarge(
            f"tenant {record.tenant!r} keeps {' and '.join(allowed)}; {lost}delete files, or ask "
            "the operator for more",
            code="quota_exceeded",
            param="file",
        )


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"no file {file_id[:64]}", code="file_not_found", param="file_id")


def _key(tenant: str) -> str:
    return f"{PREFIX}files:{tenant}"


def _ready(tenant: str) -> str:
    return f"{PREFIX}files-ready:{tenant}"


def _changing(tenant: str) -> str:
    return f"{PREFIX}files-changing:{tenant}"
