"""Changes of names, as the stream of events has them."""

from __future__ import annotations

from collections.abc import Iterable

from bmt_server.registry.names.reader import MOST_DIGESTS
from bmt_server.registry.registry import Cursor, Event, Registry

KEYS = b"keys"  # kind of the events of API keys, which change no name


def changed_names(events: Iterable[Event]) -> dict[tuple[str, str], frozenset[str] | None]:
    """Digests of the versions that changed, by (tenant, name); None if all may have, or many have.

    Former builds write events without digests.
    """
    names: dict[tuple[str, str], frozenset[str] | None] = {}
    for event in events:
        if event.get(b"kind") == KEYS:
            continue
        tenant, _, name = event.get(b"where", b"").decode().partition("/")
        key, changed = (tenant, name), event.get(b"changed")
        before = names.get(key, frozenset())
        if changed is None or before is None:
            names[key] = None
        else:
            digests = before | frozenset(changed.decode().split())
            names[key] = digests if len(digests) <= MOST_DIGESTS else None
    return names


class Changes:
    """Files of versions that are published from `start` on.

    A collection of orphans takes seconds on a large registry. It follows the changes meanwhile,
    because a collection that restarts after each change may never end.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cursor: Cursor = (0, b"0")
        self._files: set[bytes] = set()

    @property
    def generation(self) -> int:
        """Counter of the last change that `files` has."""
        return self._cursor[0]

    async def start(self, cursor: Cursor | None = None) -> None:
        """Follow changes from now on, or from a cursor."""
        self._cursor, self._files = cursor or await self._registry.cursor(), set()

    async def files(self) -> set[bytes] | None:
        """File digests of the changed versions, 32 bytes each; None if events are missing."""
        cursor = await self._registry.cursor()
        if cursor == self._cursor:
            return self._files
        events = await self._registry.events_between(self._cursor, cursor)
        if events is None:
            return None
        for read in await self._registry.reader.read(changed_names(events)):
            entries = [entry for entry in read.entries.values() if entry is not None]
            self._files |= {entry.file_digest for entry in entries}
        self._cursor = cursor
        return self._files
