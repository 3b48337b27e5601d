"""API keys: stored as hashes, verified without Redis once known.

A request with a known key never waits for Redis. A background task reads all known keys in one
call every two seconds, and a change in the registry's stream makes the next use of each key read it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import NoReturn

from redis.exceptions import RedisError

from bmt_server.errors import ApiError, RegistryDown, Unauthorized
from bmt_server.registry.connection import RegistryConnection, end_task
from bmt_server.registry.keys.reader import KEYS, KeyReader
from bmt_server.registry.keys.record import SCOPES, KeyRecord, read_record
from bmt_server.registry.keys.secret import hash_key, make_key, well_formed
from bmt_server.registry.keys.writer import KeyWriter
from bmt_server.registry.schemas import Principal

__all__ = ["SCOPES", "ApiKeyStore", "KeyRecord", "ensure_first_key", "make_key", "well_formed"]

logger = logging.getLogger("vllm.bmt_server")

# Seconds between two reads of all known keys. A revoked key stops working within 5 s on every
# server, even if the stream's event was lost.
_POLL_S = 2.0
# Seconds until an unknown key is looked up again.
_UNKNOWN_S = 5.0
_MAX_CACHED = 4096
_UNKNOWN = "the API key is not known, or was revoked"


class ApiKeyStore(KeyWriter):
    """API keys in the registry, with a cache of known keys for times when Redis is down.

    A server gives it a connection of its own, so that look-ups of keys and reads of masks do not
    wait for each other, and made-up keys delay only keys. replicas: number of the registry's
    replicas that must have a change before it is acknowledged.
    """

    def __init__(self, connection: RegistryConnection, replicas: int = 0) -> None:
        super().__init__(connection, replicas)
        self._known: dict[str, KeyRecord] = {}
        self._unknown: dict[str, float] = {}
        # Known keys that may have changed: looked up before their next use.
        self._stale: set[str] = set()
        # Keys that cannot be used, each logged once.
        self._reported: set[str] = set()
        self._polling: asyncio.Task[None] | None = None
        self._reader = KeyReader(connection)

    def start(self) -> None:
        """Keep known keys current until `close`, on the running event loop."""
        self._polling = asyncio.create_task(self._poll(), name="bmt-keys")

    async def close(self) -> None:
        """Stop the background tasks."""
        await self._reader.close()
        task, self._polling = self._polling, None
        await end_task(task)

    def invalidate(self) -> None:
        """Look every key up again at its next use."""
        self._stale = set(self._known)
        self._unknown.clear()

    async def refresh(self) -> None:
        """Look up all known keys now. Raises RegistryDown."""
        known = list(self._known)
        if not known:
            return
        quick = self._connection.quick
        values = await self._connection.call(lambda: quick.hmget(KEYS, known))
        for digest, value in zip(known, values, strict=True):
            self._take(digest, value)

    async def verify(self, key: str, peer: str = "") -> Principal:
        """Authenticate a key that `peer`, an address, has sent.

        Raises Unauthorized, RateLimited if many unknown keys of the peer wait, or RegistryDown if
        the key is not known yet.
        """
        if not well_formed(key):
            raise Unauthorized("the API key is not valid; set BMT_API_KEY or the Bearer header")
        return await self.verify_hash(hash_key(key), peer)

    async def verify_hash(self, digest: str, peer: str = "") -> Principal:
        """The same by the key's hash, of a session that began with the key."""
        record = self._known.get(digest)
        if record is None or digest in self._stale:
            record = await self._look_up(digest, peer)
        if record.status != "active":
            self._refuse(record)
        return Principal(
            record.key_id, record.tenant, frozenset(record.scopes), record.label, record.expires
        )

    def _refuse(self, record: KeyRecord) -> NoReturn:
        if record.revoked:
            raise Unauthorized(_UNKNOWN)
        if not record.fault:
            raise Unauthorized(f"the API key expired at {record.expires}")
        if record.key_id not in self._reported:
            self._reported.add(record.key_id)
            logger.warning(
                "API key %s is refused: %s. Create another key and revoke this one.",
                record.key_id,
                record.fault,
            )
        raise Unauthorized(
            f"the API key cannot be used: {record.fault}; the operator must create another one"
        )

    async def _look_up(self, digest: str, peer: str) -> KeyRecord:
        if time.monotonic() - self._unknown.get(digest, -_UNKNOWN_S) < _UNKNOWN_S:
            raise Unauthorized(_UNKNOWN)
        try:
            value = await self._reader.read(digest, peer)
        except RegistryDown:
            known = self._known.get(digest)
            if known is None:
                raise
            self._stale.discard(digest)  # the next poll decides; requests do not wait for it
            return known
        record = self._take(digest, value)
        if record is None:
            if len(self._unknown) >= _MAX_CACHED:
                self._unknown.clear()
            self._unknown[digest] = time.monotonic()
            raise Unauthorized(_UNKNOWN)
        return record

    def _take(self, digest: str, value: bytes | None) -> KeyRecord | None:
        """Update the cache with a registry value; None removes the key."""
        self._stale.discard(digest)
        if value is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= _MAX_CACHED and digest not in self._known:
            self._known.pop(next(iter(self._known)))
        record = self._known[digest] = read_record(digest, value)
        return record

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            # Known keys stay valid while Redis is down.
            with contextlib.suppress(ApiError, RedisError):
                await self.refresh()


async def ensure_first_key(url: str, given: str = "") -> str | None:
    """Create an admin key if the registry has no key at all. Returns its secret, else None.

    given: an admin key chosen by the operator, which is stored instead. Raises BadRequest if it is
    not a valid key.
    """
    connection = RegistryConnection(url)
    try:
        if given:
            await ApiKeyStore(connection).import_environment_key(given)
            return None
        made = await ApiKeyStore(connection).create(SCOPES, label="first", only_if_first=True)
    finally:
        await connection.close()
    return made[0] if made else None
