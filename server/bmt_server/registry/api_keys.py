"""API keys: created here, shown once, stored as hashes, verified without Redis once known.

A request with a known key never waits for Redis. A background task reads all known keys in one
call every two seconds, and a change in the registry's stream makes the next use of each key read it
again.

A key has the form `bmt_adm_<32 characters><6 characters of checksum>`. The 32 characters carry 190
random bits. With the checksum, the server refuses a mistyped key without a look-up, and secret
scanners recognize keys without false positives.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import bmt_core
from redis.exceptions import RedisError

from bmt_server.errors import ApiError, BadRequest, NotFound, RegistryDown, Unauthorized
from bmt_server.registry.connection import RegistryConnection, end_task
from bmt_server.registry.expiry import has_expired, parse_expiry
from bmt_server.registry.key_reader import KEYS, KeyReader
from bmt_server.registry.lua import REVOKE_KEY
from bmt_server.registry.registry import EVENTS
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal

#: Scopes of a key, from the narrowest: `metrics` reads /metrics and nothing of masks; `priority`
#: lets its requests overtake those of others.
SCOPES = ("metrics", "priority", "infer", "upload", "admin")
_KIND = {"metrics": "met", "priority": "inf", "infer": "inf", "upload": "upl", "admin": "adm"}
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 32, 6
# Seconds between two reads of all known keys. A revoked key stops working within 5 s on every
# server, even if the stream's event was lost.
_POLL_S = 2.0
# Seconds until an unknown key is looked up again.
_UNKNOWN_S = 5.0
_MAX_CACHED = 4096


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key's record in the registry, without the secret. Times are ISO 8601, in UTC."""

    key_id: str
    tenant: str
    scopes: tuple[str, ...]
    label: str
    created: str
    expires: str | None = None

    def to_json(self) -> str:
        """JSON stored in the registry."""
        return json.dumps({s: getattr(self, s) for s in self.__slots__})


def make_key(scopes: tuple[str, ...]) -> str:
    """Create a secret; its prefix names the widest scope."""
    widest = max(scopes, key=SCOPES.index)
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    head = f"bmt_{_KIND[widest]}_{body}"
    return head + _checksum(head)


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, 62)
        digits += _ALPHABET[rest]
    return digits


def well_formed(key: str) -> bool:
    """Check form and checksum, before any look-up."""
    return (
        len(key) == 8 + _RANDOM + _CHECK
        and key.isascii()
        and key.startswith("bmt_")
        and _checksum(key[:-_CHECK]) == key[-_CHECK:]
    )


def _hash(key: str) -> str:
    # 190 random bits cannot be guessed, so a fast hash is enough.
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeyStore:
    """API keys in the registry, with a cache of known keys for times when Redis is down.

    A server gives it a connection of its own, so that look-ups of keys and reads of masks do not
    wait for each other, and made-up keys delay only keys.
    """

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection
        self._known: dict[str, KeyRecord] = {}
        self._unknown: dict[str, float] = {}
        # Known keys that may have changed: looked up before their next use.
        self._stale: set[str] = set()
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

    async def create(
        self,
        scopes: tuple[str, ...],
        *,
        tenant: str = DEFAULT_TENANT,
        label: str = "",
        expires: str | None = None,
        only_if_first: bool = False,
    ) -> tuple[str, KeyRecord] | None:
        """Create a key. Returns (secret, record), or None if `only_if_first` and keys exist.

        expires: an ISO 8601 time with zone, or a duration such as `30d`. Raises BadRequest for
        unknown scopes, a tenant that is no name, and a time that is unreadable or past.
        """
        expires = parse_expiry(expires) if expires is not None else None
        try:
            bmt_core.validate_name(tenant)
        except bmt_core.InvalidName as error:
            raise BadRequest(f"tenant: {error}", code=error.code, param="tenant") from None
        if not scopes or not set(scopes) <= set(SCOPES):
            raise BadRequest(f"scopes are {list(scopes)}; choose from {', '.join(SCOPES)}")
        key = make_key(scopes)
        record = KeyRecord(secrets.token_hex(4), tenant, tuple(scopes), label, _now(), expires)
        quick = self._connection.quick
        if only_if_first:
            # One script, so that of two servers starting at once only one prints a first key.
            script = (
                "if redis.call('HLEN', KEYS[1]) > 0 then return 0 end "
                "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
            )
            made = await self._connection.call(
                lambda: quick.eval(script, 1, KEYS, _hash(key), record.to_json())
            )
            return (key, record) if made else None
        await self._connection.call(lambda: quick.hset(KEYS, _hash(key), record.to_json()))
        return key, record

    async def import_key(self, key: str, scopes: tuple[str, ...] = SCOPES, label: str = "") -> bool:
        """Store a key that `make_key` created elsewhere; False if it is stored already.

        Raises BadRequest if the text is not such a key.
        """
        if not well_formed(key):
            raise BadRequest(
                "not a valid API key, or mistyped; create one with `bmt-server keys generate`"
            )
        record = KeyRecord(secrets.token_hex(4), DEFAULT_TENANT, scopes, label, _now())
        quick = self._connection.quick
        return bool(
            await self._connection.call(lambda: quick.hsetnx(KEYS, _hash(key), record.to_json()))
        )

    async def records(self) -> list[KeyRecord]:
        """Records of all keys, oldest first."""
        values = await self._connection.call(lambda: self._connection.quick.hgetall(KEYS))
        return sorted((_record(v) for v in values.values()), key=lambda r: r.created)

    async def revoke(self, key_id: str) -> KeyRecord:
        """Delete a key; all servers refuse it within seconds. Raises NotFound."""
        quick = self._connection.quick
        values = await self._connection.call(lambda: quick.hgetall(KEYS))
        for field, value in values.items():
            record = _record(value)
            if record.key_id == key_id:
                await self._connection.call(partial(quick.eval, REVOKE_KEY, 2, KEYS, EVENTS, field))
                return record
        raise NotFound(f"no key {key_id}", code="key_unknown")

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
        digest = _hash(key)
        record = self._known.get(digest)
        if record is None or digest in self._stale:
            record = await self._look_up(digest, peer)
        if record.expires is not None and has_expired(record.expires):
            raise Unauthorized(f"the API key expired at {record.expires}")
        if not _is_name(record.tenant):
            raise Unauthorized(
                "the API key's tenant is not a valid name; the operator must create another key"
            )
        return Principal(record.key_id, record.tenant, frozenset(record.scopes))

    async def _look_up(self, digest: str, peer: str) -> KeyRecord:
        if time.monotonic() - self._unknown.get(digest, -_UNKNOWN_S) < _UNKNOWN_S:
            raise Unauthorized("the API key is not known, or was revoked")
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
            raise Unauthorized("the API key is not known, or was revoked")
        return record

    def _take(self, digest: str, value: bytes | None) -> KeyRecord | None:
        """Update the cache with a registry value; None removes the key."""
        self._stale.discard(digest)
        if value is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= _MAX_CACHED and digest not in self._known:
            self._known.pop(next(iter(self._known)))
        record = self._known[digest] = _record(value)
        return record

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            # Known keys stay valid while Redis is down.
            with contextlib.suppress(ApiError, RedisError):
                await self.refresh()


def _record(value: bytes) -> KeyRecord:
    raw = json.loads(value)
    raw["scopes"] = tuple(raw["scopes"])
    return KeyRecord(**raw)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_name(text: str) -> bool:
    try:
        bmt_core.validate_name(text)
    except bmt_core.InvalidName:
        return False
    return True


async def ensure_first_key(url: str, given: str = "") -> str | None:
    """Create an admin key if the registry has no key at all. Returns its secret, else None.

    given: an admin key chosen by the operator, which is stored instead. Raises BadRequest if it is
    not a valid key.
    """
    connection = RegistryConnection(url)
    try:
        if given:
            await ApiKeyStore(connection).import_key(given, label="BMT_ADMIN_KEY")
            return None
        made = await ApiKeyStore(connection).create(SCOPES, label="first", only_if_first=True)
    finally:
        await connection.close()
    return made[0] if made else None
