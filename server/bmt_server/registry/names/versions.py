"""Versions of one name in memory: small records, parsed when they are asked for.

A server keeps the versions of all names, and needs the whole of a few of them. So an entry is kept
as the registry's text with the fields that lists and look-ups need, about 1 kB; a parsed `Version`
is about 5 kB and takes ten times as long to make. Indices by rev and by digest are made when first
used and kept from then on, so no call depends on the number of versions.
"""

from __future__ import annotations

import functools
import json
import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from bmt_server.registry.schemas import Version

logger = logging.getLogger("vllm.bmt_server")

# Parsed versions of the process; those that requests name are parsed once.
_PARSED = 2048


@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """One version as the registry keeps it: "<rev>|<id>|<parent>|<version JSON>".

    created: seconds since 1970. file_digest: 32 bytes. fingerprint: of the base.
    size: of the file, bytes.
    """

    digest: str
    text: str
    rev: int
    id: int
    created: int
    file_digest: bytes
    fingerprint: str
    size: int = 0

    @classmethod
    def read(cls, digest: str, text: str) -> Entry | None:
        """Parse as much as lists and look-ups need; None, and a line in the log, if unreadable."""
        try:
            rev, identity, _, raw = text.split("|", 3)
            fields = _fields(raw)
            return cls(
                digest,
                text,
                int(rev),
                int(identity),
                int(datetime.fromisoformat(fields.created).timestamp()),
                bytes.fromhex(fields.file_digest),
                _shared(fields.base.fingerprint),
                fields.bytes,
            )
        except (ValueError, TypeError) as error:
            logger.error("Version %s of the mask registry is unreadable: %r.", digest[:12], error)
            return None

    def version(self) -> Version:
        """The whole version."""
        return _parsed(self.text)


class _Base(msgspec.Struct, gc=False):
    fingerprint: str


class _Fields(msgspec.Struct, gc=False):
    """Fields of a version's JSON that an entry needs."""

    created: str
    file_digest: str
    base: _Base
    bytes: int = 0


_decode = msgspec.json.Decoder(_Fields).decode


def _fields(raw: str) -> _Fields:
    """Parse a version's JSON. Raises ValueError."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Metadata may hold what the standard library writes and JSON does not have, such as NaN.
        return msgspec.convert(json.loads(raw), _Fields)


@functools.lru_cache(maxsize=256)
def _shared(text: str) -> str:
    """One object for equal texts: a registry has few bases."""
    return text


@functools.lru_cache(maxsize=_PARSED)
def _parsed(text: str) -> Version:
    rev, identity, parent, raw = text.split("|", 3)
    return Version.from_entry(raw).model_copy(
        update={"rev": int(rev), "id": int(identity), "parent": parent or None}
    )


class Versions(Mapping[str, Version]):
    """Versions by mask digest. `put` and `drop` change them in place."""

    __slots__ = ("_by_digest", "_by_rev", "_entries")

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries: dict[str, Entry] = dict(entries or {})
        self._by_rev: list[tuple[int, str]] | None = None
        self._by_digest: list[str] | None = None

    def __getitem__(self, digest: str) -> Version:
        return self._entries[digest].version()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: object) -> bool:
        return digest in self._entries

    def entry(self, digest: str | None) -> Entry | None:
        """The entry of a digest; None if there is none."""
        return self._entries.get(digest) if digest else None

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def files(self) -> list[str]:
        """File digests of all versions, SHA-256, 64 hex digits each."""
        return [entry.file_digest.hex() for entry in self._entries.values()]

    def put(self, entry: Entry) -> Entry | None:
        """Add or replace one version. Returns the entry that was replaced."""
        old = self._entries.get(entry.digest)
        self._entries[entry.digest] = entry
        if self._by_rev is not None:
            if old is not None:
                _discard(self._by_rev, (old.rev, old.digest))
            insort(self._by_rev, (entry.rev, entry.digest))
        if self._by_digest is not None and old is None:
            insort(self._by_digest, entry.digest)
        return old

    def drop(self, digest: str) -> Entry | None:
        """Remove one version. Returns its entry."""
        old = self._entries.pop(digest, None)
        if old is not None:
            if self._by_rev is not None:
                _discard(self._by_rev, (old.rev, old.digest))
            if self._by_digest is not None:
                _discard(self._by_digest, digest)
        return old

    def of_prefix(self, prefix: str) -> Entry | None:
        """The one version whose digest begins with `prefix`; None if there is none, or several."""
        if self._by_digest is None:
            self._by_digest = sorted(self._entries)
        at = bisect_left(self._by_digest, prefix)
        matches = [d for d in self._by_digest[at : at + 2] if d.startswith(prefix)]
        return self._entries[matches[0]] if len(matches) == 1 else None

    def of_rev(self, rev: int) -> Entry | None:
        """The version of a rev; None if there is none."""
        order = self._order()
        at = bisect_left(order, (rev, ""))
        return self._entries[order[at][1]] if at < len(order) and order[at][0] == rev else None

    def page(self, limit: int, before: int | None = None) -> list[Entry]:
        """At most `limit` versions, newest first. before: only revs below this one."""
        order = self._order()
        end = len(order) if before is None else bisect_left(order, (before, ""))
        return [self._entries[digest] for _, digest in reversed(order[max(0, end - limit) : end])]

    def beyond(self, keep: int) -> Iterator[Entry]:
        """All versions but the newest `keep`, oldest first."""
        order = self._order()
        return (self._entries[digest] for _, digest in order[: max(0, len(order) - keep)])

    def _order(self) -> list[tuple[int, str]]:
        if self._by_rev is None:
            self._by_rev = sorted((e.rev, e.digest) for e in self._entries.values())
        return self._by_rev


def _discard(items: list[Any], item: Any) -> None:
    at = bisect_left(items, item)
    if at < len(items) and items[at] == item:
        del items[at]
