"""API keys: made here, shown once, stored as hashes, checked without Redis once known.

A request with a known key never waits for Redis: known keys are looked up again beside requests,
all in one call, and at once after a change that the registry's stream tells of.

A key reads `bmt_adm_<32 characters><6 characters of checksum>`: 190 bits of chance, and a
checksum so that a mistyped key is refused without a look-up and secret scanners can be sure.
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

from redis.exceptions import RedisError

from bmt_server.errors import ApiError, BadRequest, NotFound, RegistryDown, Unauthorized
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.registry import EVENTS, PREFIX
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal

KEYS = PREFIX + "keys"
SCOPES = ("infer", "upload", "admin")
_KIND = {"infer": "inf", "upload": "upl", "admin": "adm"}
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 32, 6
# Between two looks at all known keys, seconds. A revoked key stops working within 5 s on every
# replica, also where the stream's word of it was lost.
_POLL_S = 2.0
# How long a key that is not there is not asked for again, seconds.
_UNKNOWN_S = 5.0
_MAX_CACHED = 4096
_CANCEL_S = 0.2


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as the registry keeps it: no secret in it. Times are ISO 8601, expires may be None."""

    key_id: str
    tenant: str
    scopes: tuple[str, ...]
    label: str
    created: str
    expires: str | None = None

    def text(self) -> str:
        """As the registry keeps it, JSON."""
        return json.dumps({s: getattr(self, s) for s in self.__slots__})


def make_key(scopes: tuple[str, ...]) -> str:
    """A new secret; its prefix tells the widest scope."""
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
    """True where the checksum fits: worth a look-up."""
    return (
        len(key) == 8 + _RANDOM + _CHECK
        and key.isascii()
        and key.startswith("bmt_")
        and _checksum(key[:-_CHECK]) == key[-_CHECK:]
    )


def _hash(key: str) -> str:
    # Random keys of 190 bits need no slow hash: there is nothing to guess from.
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeyStore:
    """Keys in the registry, with what this process has seen kept for when Redis is down."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection
        self._known: dict[str, KeyRecord] = {}
        self._unknown: dict[str, float] = {}
        # Known ones that a change may have been about: looked up before their next use.
        self._stale: set[str] = set()
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep known keys current, from the running loop, until `close`."""
        self._polling = asyncio.create_task(self._poll(), name="bmt-keys")

    async def close(self) -> None:
        """End that."""
        task, self._polling = self._polling, None
        # Until it ends, as in RegistryReplica.close.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_S)

    async def create(
        self,
        scopes: tuple[str, ...],
        *,
        tenant: str = DEFAULT_TENANT,
        label: str = "",
        expires: str | None = None,
        only_if_first: bool = False,
    ) -> tuple[str, KeyRecord] | None:
        """Make a key. Returns (secret, record); None where `only_if_first` and there are keys."""
        if not scopes or not set(scopes) <= set(SCOPES):
            raise BadRequest(f"scopes are {list(scopes)}; choose from {', '.join(SCOPES)}")
        key = make_key(scopes)
        record = KeyRecord(secrets.token_hex(4), tenant, tuple(scopes), label, _now(), expires)
        quick = self._connection.quick
        if only_if_first:
            # One script, so that two servers that start at once do not both print a first key.
            script = (
                "if redis.call('HLEN', KEYS[1]) > 0 then return 0 end "
                "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
            )
            made = await self._connection.call(
                lambda: quick.eval(script, 1, KEYS, _hash(key), record.text())
            )
            return (key, record) if made else None
        await self._connection.call(lambda: quick.hset(KEYS, _hash(key), record.text()))
        return key, record

    async def import_key(self, key: str, scopes: tuple[str, ...] = SCOPES, label: str = "") -> bool:
        """Take in a key that was made elsewhere, by `make_key`; False where it is known already.

        Raises BadRequest for text that is no such key.
        """
        if not well_formed(key):
            raise BadRequest(
                "the key is not one of ours, or mistyped; make one with `bmt-server keys generate`"
            )
        record = KeyRecord(secrets.token_hex(4), DEFAULT_TENANT, scopes, label, _now())
        quick = self._connection.quick
        return bool(
            await self._connection.call(lambda: quick.hsetnx(KEYS, _hash(key), record.text()))
        )

    async def records(self) -> list[KeyRecord]:
        """Every key's record, oldest first."""
        found = await self._connection.call(lambda: self._connection.quick.hgetall(KEYS))
        return sorted((_record(v) for v in found.values()), key=lambda r: r.created)

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key, everywhere within seconds. Raises NotFound."""
        quick = self._connection.quick
        found = await self._connection.call(lambda: quick.hgetall(KEYS))
        for field, value in found.items():
            record = _record(value)
            if record.key_id == key_id:
                await self._connection.call(partial(quick.hdel, KEYS, field))
                await self._connection.call(
                    lambda: quick.xadd(EVENTS, {"where": "", "kind": "keys", "generation": 0})
                )
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

    async def verify(self, key: str) -> Principal:
        """Who the key belongs to. Raises Unauthorized; RegistryDown where it cannot be known."""
        if not well_formed(key):
            raise Unauthorized("the API key is not valid; set BMT_API_KEY or the Bearer header")
        digest = _hash(key)
        record = self._known.get(digest)
        if record is None or digest in self._stale:
            record = await self._look_up(digest)
        if record.expires is not None and record.expires <= _now():
            raise Unauthorized(f"the API key expired at {record.expires}")
        return Principal(record.key_id, record.tenant, frozenset(record.scopes))

    async def _look_up(self, digest: str) -> KeyRecord:
        if time.monotonic() - self._unknown.get(digest, -_UNKNOWN_S) < _UNKNOWN_S:
            raise Unauthorized("the API key is not known, or was revoked")
        try:
            value = await self._connection.call(lambda: self._connection.quick.hget(KEYS, digest))
        except RegistryDown:
            known = self._known.get(digest)
            if known is None:
                raise
            self._stale.discard(digest)  # the next look decides; requests do not wait for it
            return known
        record = self._take(digest, value)
        if record is None:
            if len(self._unknown) >= _MAX_CACHED:
                self._unknown.clear()
            self._unknown[digest] = time.monotonic()
            raise Unauthorized("the API key is not known, or was revoked")
        return record

    def _take(self, digest: str, value: bytes | None) -> KeyRecord | None:
        """What the registry says of a key, None where it has none, is what is known of it."""
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
            # Where Redis is away, known keys go on.
            with contextlib.suppress(ApiError, RedisError):
                await self.refresh()


def _record(value: bytes) -> KeyRecord:
    raw = json.loads(value)
    raw["scopes"] = tuple(raw["scopes"])
    return KeyRecord(**raw)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def ensure_first_key(url: str, given: str = "") -> str | None:
    """The secret of a new admin key where the registry has no key at all, else None.

    given: an admin key that the operator chose; it is adopted, and none is made. Raises BadRequest
    where it is no key.
    """
    store = RegistryConnection(url)
    try:
        if given:
            await ApiKeyStore(store).import_key(given, label="BMT_ADMIN_KEY")
            return None
        made = await ApiKeyStore(store).create(SCOPES, label="first", only_if_first=True)
    finally:
        await store.close()
    return made[0] if made else None
