"""API keys: made here, shown once, stored as hashes, checked without Redis once known.

A key reads `bmt_adm_<32 characters><6 characters of checksum>`: 190 bits of chance, and a
checksum so that a mistyped key is refused without a look-up and secret scanners can be sure.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from bmt_server.api.errors import BadRequest, NotFound, RegistryDown, Unauthorized
from bmt_server.api.registry import EVENTS, PREFIX
from bmt_server.api.schemas import DEFAULT_TENANT, Principal
from bmt_server.api.store import Store

KEYS = PREFIX + "keys"
SCOPES = ("infer", "upload", "admin")
_KIND = {"infer": "inf", "upload": "upl", "admin": "adm"}
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 32, 6
# A revoked key stops working within this time on every replica, seconds.
_FRESH_S = 5.0
_MAX_CACHED = 4096


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


class KeyStore:
    """Keys in the registry, with what this process has seen kept for when Redis is down."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, tuple[float, KeyRecord | None]] = {}

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
        quick = self._store.quick
        if only_if_first:
            # One script, so that two servers that start at once do not both print a first key.
            script = (
                "if redis.call('HLEN', KEYS[1]) > 0 then return 0 end "
                "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
            )
            made = await self._store.call(
                lambda: quick.eval(script, 1, KEYS, _hash(key), record.text())
            )
            return (key, record) if made else None
        await self._store.call(lambda: quick.hset(KEYS, _hash(key), record.text()))
        return key, record

    async def adopt(self, key: str, scopes: tuple[str, ...] = SCOPES, label: str = "") -> bool:
        """Take in a key that was made elsewhere, by `make_key`; False where it is known already.

        Raises BadRequest for text that is no such key.
        """
        if not well_formed(key):
            raise BadRequest(
                "the key is not one of ours, or mistyped; make one with `bmt-server keys generate`"
            )
        record = KeyRecord(secrets.token_hex(4), DEFAULT_TENANT, scopes, label, _now())
        quick = self._store.quick
        return bool(await self._store.call(lambda: quick.hsetnx(KEYS, _hash(key), record.text())))

    async def records(self) -> list[KeyRecord]:
        """Every key's record, oldest first."""
        found = await self._store.call(lambda: self._store.quick.hgetall(KEYS))
        return sorted((_record(v) for v in found.values()), key=lambda r: r.created)

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key, everywhere within seconds. Raises NotFound."""
        quick = self._store.quick
        found = await self._store.call(lambda: quick.hgetall(KEYS))
        for field, value in found.items():
            record = _record(value)
            if record.key_id == key_id:
                await self._store.call(partial(quick.hdel, KEYS, field))
                await self._store.call(
                    lambda: quick.xadd(EVENTS, {"where": "", "kind": "keys", "generation": 0})
                )
                return record
        raise NotFound(f"no key {key_id}", code="key_unknown")

    def forget(self) -> None:
        """Look every key up again at its next use."""
        self._seen = {h: (0.0, r) for h, (_, r) in self._seen.items() if r is not None}

    async def verify(self, key: str) -> Principal:
        """Who the key belongs to. Raises Unauthorized; RegistryDown where it cannot be known."""
        if not well_formed(key):
            raise Unauthorized("the API key is not valid; set BMT_API_KEY or the Bearer header")
        digest = _hash(key)
        at, record = self._seen.get(digest, (0.0, None))
        known = digest in self._seen
        if not known or time.monotonic() - at > _FRESH_S:
            try:
                value = await self._store.call(lambda: self._store.quick.hget(KEYS, digest))
                record = _record(value) if value else None
                if len(self._seen) >= _MAX_CACHED:
                    self._seen.clear()
                self._seen[digest] = (time.monotonic(), record)
            except RegistryDown:
                if record is None:
                    raise
        if record is None:
            raise Unauthorized("the API key is not known, or was revoked")
        if record.expires is not None and record.expires <= _now():
            raise Unauthorized(f"the API key expired at {record.expires}")
        return Principal(record.key_id, record.tenant, frozenset(record.scopes))


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
    store = Store(url)
    try:
        if given:
            await KeyStore(store).adopt(given, label="BMT_ADMIN_KEY")
            return None
        made = await KeyStore(store).create(SCOPES, label="first", only_if_first=True)
    finally:
        await store.close()
    return made[0] if made else None
