"""Reads of names from the registry: many in one call, and of each as little as changed.

One script reads the hashes of many names and replies with one packed string, because a client
parses a reply of its own for each command about as slowly as it waits for it. A name with many
versions is read in pages, so neither the registry nor this process is held up by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.canary.split import POINTERS
from bmt_server.registry.connection import BULK_S, RegistryConnection
from bmt_server.registry.names.versions import Entry, Versions

logger = logging.getLogger("vllm.bmt_server")

NAMES = PREFIX + "names"
GENERATION = PREFIX + "generation"

# Names with more versions are read in pages.
_INLINE = 32
PAGE = 200  # versions
# Versions of one name in a call: more are read with the whole name. A script can pass on 8,000.
MOST_DIGESTS = 500
_NAMES_PAGE = 2000
_FEW_NAMES = 16
# Entries parsed before other work of the event loop gets its turn, about 3 ms.
_TURN = 250

# KEYS: generation, then the name's hash and the versions' hash of each name.
# ARGV: for each name the number of digests to read and these digests; -1 for all versions.
# A name with more versions than ARGV[1] has `false` in their place.
_READ = """#!lua flags=no-writes
local out, at = {redis.call('GET', KEYS[1]) or '0'}, 2
for i = 2, #KEYS, 2 do
  local count, versions = tonumber(ARGV[at]), {}
  at = at + 1
  if count > 0 then
    versions = redis.call('HMGET', KEYS[i + 1], unpack(ARGV, at, at + count - 1))
    at = at + count
  elseif count < 0 then
    versions = redis.call('HLEN', KEYS[i + 1]) <= tonumber(ARGV[1])
      and redis.call('HGETALL', KEYS[i + 1])
  end
  out[#out + 1] = redis.call('HGETALL', KEYS[i])
  out[#out + 1] = versions
end
return cmsgpack.pack(out)
"""

# The digests of a name to read; None for the whole name.
Wanted = Mapping[tuple[str, str], frozenset[str] | None]
# The versions of a name that are known already.
Known = Callable[[str, str], Versions | None]


@dataclass(slots=True)
class NameRead:
    """One name as read: the fields of its hash, and all its versions or those asked for.

    entries: None for a digest that has no version. generation: counter of changes at the read.
    unreadable: texts of versions by digest that this build cannot read; they are in no entry.
    """

    tenant: str
    name: str
    generation: int
    whole: bool
    head: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entry | None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, digest: str, text: Any, known: Versions | None) -> None:
        """Take a version as read; the known entry if it is equal.

        text: a string, bytes that may be none, or anything else for a version that is missing.
        """
        entry = None
        try:
            entry = _entry(digest, text.decode() if isinstance(text, bytes) else text, known)
        except UnicodeDecodeError as error:
            logger.error("Version %s of the mask registry is unreadable: %s.", digest[:12], error)
        self.entries[digest] = entry
        if entry is None and isinstance(text, str | bytes):
            self.unreadable[digest] = _text(text)

    def pointers(self) -> set[str]:
        """Digests at which `latest`, aliases and their splits point."""
        kinds = ("alias:", *POINTERS)
        return {v for k, v in self.head.items() if v and (k == "latest" or k.startswith(kinds))}


class NameReader:
    """Reads of names. All methods raise RegistryDown if Redis does not answer."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection

    async def pages(self) -> AsyncIterator[list[tuple[str, str]]]:
        """(tenant, name) of every name that has versions, in pages; a name may come twice."""
        cursor, bulk = 0, self._connection.bulk
        while True:
            scan = partial(bulk.sscan, NAMES, cursor, count=_NAMES_PAGE)
            cursor, members = await self._connection.call(scan, BULK_S)
            parts = [member.decode().partition("/") for member in members]
            yield [(tenant, name) for tenant, _, name in parts]
            if not int(cursor):
                return

    async def digests(self, tenant: str, name: str, prefix: str) -> list[str]:
        """Digests of a name's versions that begin with `prefix`."""
        key, cursor, quick = versions_key(f"{tenant}/{name}"), 0, self._connection.quick
        digests: list[str] = []
        while True:
            scan = partial(quick.hscan, key, cursor, match=f"{prefix}*", count=5 * PAGE)
            cursor, found = await self._connection.call(scan)
            digests += [digest.decode() for digest in found]
            if not int(cursor):
                return digests

    async def read(
        self, wanted: Wanted, known: Known = lambda tenant, name: None
    ) -> list[NameRead]:
        """Read names. known: their versions, of which entries that are equal are kept."""
        if not wanted:
            return []
        keys, args = [GENERATION], [str(_INLINE)]
        for (tenant, name), digests in wanted.items():
            keys += [name_key(f"{tenant}/{name}"), versions_key(f"{tenant}/{name}")]
            args += ["-1"] if digests is None else [str(len(digests)), *digests]
        # A request may wait for a few names; only a whole registry may take longer.
        few = len(wanted) <= _FEW_NAMES
        client = self._connection.quick if few else self._connection.bulk
        packed = await self._connection.call(
            lambda: client.eval(_READ, len(keys), *keys, *args), None if few else BULK_S
        )
        try:
            generation, *parts = msgspec.msgpack.decode(packed)
        except msgspec.DecodeError as error:
            return await self._read_unreadable(wanted, known, error)
        reads, parsed = [], 0
        for i, ((tenant, name), digests) in enumerate(wanted.items()):
            read = NameRead(tenant, name, int(generation), digests is None)
            read.head, versions = _pairs(parts[2 * i]), parts[2 * i + 1]
            old = known(tenant, name)
            if digests:
                for digest, text in zip(digests, versions, strict=True):
                    read.add(digest, text, old)
            elif digests is None and versions is not False:
                for digest, text in _pairs(versions).items():
                    read.add(digest, text, old)
            elif digests is None:
                await self._read_in_pages(read, old)
            reads.append(read)
            parsed += len(read.entries)
            if parsed >= _TURN:
                parsed = 0
                await asyncio.sleep(0)
        return reads

    async def _read_unreadable(
        self, wanted: Wanted, known: Known, error: Exception
    ) -> list[NameRead]:
        """Read names one by one, because one of them has an entry that is not text."""
        if len(wanted) > 1:
            return [r for key in wanted for r in await self.read({key: wanted[key]}, known)]
        ((tenant, name),) = wanted
        logger.error("Mask %s/%s of the registry is unreadable in part: %s.", tenant, name, error)
        quick, key = self._connection.quick, name_key(f"{tenant}/{name}")
        generation = await self._connection.call(lambda: quick.get(GENERATION))
        head = await self._connection.call(lambda: quick.hgetall(key))
        read = NameRead(tenant, name, int(generation or 0), whole=True)
        read.head = {_text(k): _text(v) for k, v in head.items()}
        await self._scan(read, known(tenant, name))
        return [read]

    async def _read_in_pages(self, read: NameRead, old: Versions | None) -> None:
        """Read all versions of a name in pages, then its hash.

        A version that is written or deleted meanwhile may be missing or stale, as the event of
        that change, which follows, will show.
        """
        await self._scan(read, old)
        missing = frozenset(read.pointers() - read.entries.keys())
        if missing:
            (late,) = await self.read({(read.tenant, read.name): missing})
            read.head, read.entries = late.head, {**read.entries, **late.entries}
            read.unreadable |= late.unreadable

    async def _scan(self, read: NameRead, old: Versions | None) -> None:
        """Read all versions of a name into `read`, in pages."""
        key, cursor, bulk = versions_key(f"{read.tenant}/{read.name}"), 0, self._connection.bulk
        while True:
            scan = partial(bulk.hscan, key, cursor, count=PAGE)
            cursor, found = await self._connection.call(scan, BULK_S)
            for digest, text in found.items():
                read.add(_text(digest), text, old)
            if not int(cursor):
                return


def name_key(path: str) -> str:
    """Redis key of a name's hash. path: <tenant>/<name>."""
    return f"{PREFIX}name:{path}"


def versions_key(path: str) -> str:
    """Redis key of the hash of a name's versions. path: <tenant>/<name>."""
    return f"{PREFIX}versions:{path}"


def _entry(digest: str, text: Any, known: Versions | None) -> Entry | None:
    """The entry of a version, the known one if it is equal. text: not a string if missing."""
    if not isinstance(text, str):
        return None
    old = known.entry(digest) if known is not None else None
    return old if old is not None and old.text == text else Entry.read(digest, text)


def _text(stored: str | bytes) -> str:
    """Text of the registry, with U+FFFD in place of bytes that are none."""
    return stored.decode(errors="replace") if isinstance(stored, bytes) else stored


def _pairs(flat: Iterable[str]) -> dict[str, str]:
    items = iter(flat)
    return dict(zip(items, items, strict=True))
