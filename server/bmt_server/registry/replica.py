"""In-memory replica of the registry's names, kept current by the stream of changes.

Requests resolve names against it without a round trip, and continue to do so while Redis is down. A
stream read from a remembered event id misses nothing while the connection holds. The counter of
changes and the id of the last event, compared every few seconds and after every reconnect, reveal
changes that were missed otherwise.

An event says which version of a name changed, so a change costs the same under a name of ten
versions and of ten thousand. Events of former builds do not, and then the whole name is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from bmt_server.errors import ApiError
from bmt_server.registry.connection import end_task
from bmt_server.registry.names.catalog import Catalog, Key
from bmt_server.registry.names.changes import KEYS, changed_names
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.reader import MOST_DIGESTS, NameRead
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.registry import EVENTS, Cursor, Event, Registry, follow_each_other

logger = logging.getLogger("vllm.bmt_server")

_BLOCK_S = 2.0
_RECONCILE_S = 10.0
_PAUSE_S = 0.5
# Names of one read, so that neither the registry nor this process is held up by it.
_BATCH = 100
_READS = 5
_REMOVED = 1024


class RegistryReplica:
    """Names of all tenants, kept current from `start` to `close`.

    on_change: called with (tenant, name) and the name's new state, None if it has no version left.
    on_keys_change: called after any change of API keys.
    on_connection: called with 1 when the registry answers and 0 when it does not.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_change: Callable[[Key, NameState | None], None],
        on_keys_change: Callable[[], None],
        on_connection: Callable[[int], None],
    ) -> None:
        self._registry = registry
        self._on_change = on_change
        self._on_keys_change = on_keys_change
        self._on_connection = on_connection
        self.catalog = Catalog()
        # Names without versions -> generation of the read that found so; the last few.
        self._removed: dict[Key, int] = {}
        self._cursor = (-1, b"")  # of the registry: all changes up to it are known here
        self._task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        self._connected = False
        self._logged = ""

    def get(self, tenant: str, name: str) -> NameState | None:
        """State of a name, or None if it has no version."""
        return self.catalog.get(tenant, name)

    def unused(self, digests: Iterable[str]) -> tuple[list[str], Cursor]:
        """Files that no version names up to a change, and the cursor of that change."""
        used = self.catalog.any_has_file
        return [d for d in digests if not used(bytes.fromhex(d))], self._cursor

    def stored(self, tenant: str) -> tuple[int, int, int]:
        """Versions of a tenant, bytes of their files, and the change that both include."""
        return *self.catalog.stored(tenant), self._cursor[0]

    def expired(self, now: float) -> list[NameState]:
        """Names of all tenants that the servers may remove. now: seconds since 1970."""
        return [state for state in self.catalog.expiring() if state.has_expired(now)]

    async def refresh(
        self, tenant: str, name: str, changed: Iterable[str] | None = None
    ) -> NameState | None:
        """Read one name now: after a write by this process, or for a name not known yet.

        changed: digests of the versions that changed; None for a name that is not known.
        """
        await self._update({(tenant, name): None if changed is None else frozenset(changed)})
        return self.get(tenant, name)

    async def look_up(self, tenant: str, name: str, prefix: str | None) -> NameState | None:
        """Read a name now in which a reference was not found: its aliases, or a digest prefix."""
        if self.get(tenant, name) is None:
            return await self.refresh(tenant, name)
        digests: list[str] = []
        if prefix is not None:
            digests = await self._registry.reader.digests(tenant, name, prefix)
        return await self.refresh(tenant, name, digests)

    async def sync(self) -> None:
        """Read all names if there are changes that the events do not explain."""
        cursor = await self._registry.cursor()
        if self.synced.is_set() and (cursor == self._cursor or await self._catch_up(cursor)):
            return
        await self._read_all()
        # A counter that decreased means that Redis lost acknowledged writes.
        if cursor[0] < self._cursor[0]:
            logger.error(
                "The registry went back from change %d to %d: a failover lost writes.",
                self._cursor[0],
                cursor[0],
            )
        self._cursor = cursor
        self.synced.set()

    async def _read_all(self) -> None:
        """Read all names of the registry and take them over.

        The registry makes one reply while this process parses the one before.
        """
        ahead: asyncio.Task[list[NameRead]] | None = None
        known: dict[Key, int] = {}
        try:
            async for batch in self._batches():
                read = self._registry.reader.read(dict.fromkeys(batch), self._known)
                known_now = {key: self._newest(key) for key in batch}
                current, ahead = ahead, asyncio.create_task(read)
                if current is not None:
                    await self._take_all(await current, known)
                known = known_now
            if ahead is not None:
                await self._take_all(await ahead, known)
        finally:
            await end_task(ahead)

    async def _take_all(self, reads: list[NameRead], known: dict[Key, int]) -> None:
        """Take over whole names. known: counter of changes of each when it was asked for."""
        crossed = []
        for read in reads:
            key = (read.tenant, read.name)
            if known[key] <= read.generation < self._newest(key):
                crossed.append(key)  # another call knows it newer, but maybe not all of it
            else:
                self._take(read)
        await self._update(dict.fromkeys(crossed))

    async def _batches(self) -> AsyncIterator[list[Key]]:
        unseen = set(self.catalog.keys())
        async for page in self._registry.reader.pages():
            unseen.difference_update(page)
            for at in range(0, len(page), _BATCH):
                yield page[at : at + _BATCH]
            if not self.synced.is_set():
                # The names stay. A garbage collection that visits all of them would stop every
                # stream for the better part of a second with 100,000 names.
                gc.freeze()
        # Deleted, or published after the scan had begun.
        rest = list(unseen)
        for at in range(0, len(rest), _BATCH):
            yield rest[at : at + _BATCH]

    async def _catch_up(self, cursor: tuple[int, bytes]) -> bool:
        """Apply the events since the last known change. False if they do not explain `cursor`.

        Under steady publishing some event is always on its way, which is no reason to read all.
        """
        if self._cursor[1] in (b"", b"0"):
            return False
        events = await self._registry.events_between(self._cursor, cursor)
        if events is None:
            return False
        await self._apply(events, cursor[1])
        return self._cursor == cursor

    def _known(self, tenant: str, name: str) -> Versions | None:
        state = self.catalog.get(tenant, name)
        return state.versions if state is not None else None

    async def _update(self, wanted: dict[Key, frozenset[str] | None]) -> None:
        """Read what changed of names and take it over.

        A reply that is older than what another call has taken over meanwhile is read again: the
        newer one holds only the version that its own change was about. A reply that is older than
        what was known when it was asked for is of a registry that lost writes, and counts if it is
        of the whole name.
        """
        attempt = 0
        while wanted:
            attempt += 1
            asked = {key: self._to_read(key, digests) for key, digests in wanted.items()}
            known = {key: self._newest(key) for key in wanted}
            wanted = {}
            for read in await self._registry.reader.read(asked, self._known):
                key = (read.tenant, read.name)
                state, digests = self.catalog.get(*key), asked[key]
                if read.generation < known[key] == self._newest(key) and not read.whole:
                    wanted[key] = None
                elif known[key] <= read.generation < self._newest(key) or (
                    state is None and not read.whole
                ):
                    wanted[key] = digests
                elif digests is not None and (missing := self._missing(state, read)):
                    wanted[key] = digests | missing if attempt < _READS else None
                else:
                    self._take(read)

    def _newest(self, key: Key) -> int:
        """Counter of changes at the last read of a name that was taken over."""
        state = self.catalog.get(*key)
        return state.generation if state is not None else self._removed.get(key, 0)

    def _to_read(self, key: Key, digests: frozenset[str] | None) -> frozenset[str] | None:
        known = self.catalog.get(*key) is not None
        few = digests is not None and len(digests) <= MOST_DIGESTS
        return digests if known and few else None

    @staticmethod
    def _missing(state: NameState | None, read: NameRead) -> set[str]:
        """Digests that aliases point at and that are neither known nor read."""
        known = state.versions if state is not None else {}
        return {d for d in read.pointers() if d not in known and d not in read.entries}

    def _take(self, read: NameRead) -> None:
        key = (read.tenant, read.name)
        changed = self.catalog.apply(read)
        state = self.catalog.get(*key)
        if state is None and changed:
            self._removed[key] = read.generation
            if len(self._removed) > _REMOVED:
                del self._removed[next(iter(self._removed))]
        elif state is not None:
            self._removed.pop(key, None)
        if changed:
            self._on_change(key, state)

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="bmt-registry-events")

    async def close(self) -> None:
        task, self._task = self._task, None
        await end_task(task)

    async def _follow(self) -> None:
        while True:
            client = self._registry.connection.blocking_client(_BLOCK_S)
            try:
                await self._registry.check_server()
                await self.sync()
                last = self._cursor[1]
                self._set_connected(True)
                reconciled = time.monotonic()
                while True:
                    reply = await client.xread({EVENTS: last}, count=100, block=int(_BLOCK_S * 1e3))
                    for _, entries in _streams(reply):
                        await self._take_events(entries)
                        last = self._cursor[1]
                    if time.monotonic() - reconciled > _RECONCILE_S:
                        await self._registry.check_server()
                        await self.sync()
                        # After a failover it may precede the last event that was read.
                        last, reconciled = self._cursor[1], time.monotonic()
            except (TimeoutError, RedisError, OSError, ApiError) as error:
                self._log(error)
                self._set_connected(False)
                await asyncio.sleep(_PAUSE_S)
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await client.aclose()

    def _log(self, error: Exception) -> None:
        """One line per cause, not one per attempt."""
        cause = getattr(error, "detail", "") or str(error)
        if self._connected or cause != self._logged:
            so = "known masks are still served" if self.synced.is_set() else "waiting for it"
            logger.warning("The mask registry cannot be used (%s); %s.", cause, so)
        self._logged = cause

    def _set_connected(self, connected: bool) -> None:
        if connected and not self._connected and self._logged:
            logger.info("The mask registry answers again.")
            self._logged = ""
        self._connected = connected
        self._on_connection(int(connected))

    async def _take_events(self, entries: list[tuple[bytes, Event]]) -> None:
        """Apply events as they arrive, or read all names if some are missing between them.

        The stream keeps about ten thousand: a process that stood still for longer misses some, and
        its counter and last event are equal to the registry's all the same.
        """
        events = [fields for _, fields in entries]
        if follow_each_other(self._cursor[0], events):
            await self._apply(events, entries[-1][0])
        else:
            self._on_keys_change()
            await self.sync()

    async def _apply(self, events: list[Event], last: bytes) -> None:
        generation = self._cursor[0]
        for event in events:
            if event.get(b"kind") == KEYS:
                self._on_keys_change()
            generation = max(generation, int(event.get(b"generation", 0)))
        await self._update(changed_names(events))
        self._cursor = (generation, last)


def _streams(reply: object) -> Iterable[tuple[bytes, list[Any]]]:
    """Normalize XREAD's reply: a list under RESP2, a dict of lists of lists under RESP3."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [
            (k, [e for part in v for e in part] if v and isinstance(v[0], list) else v)
            for k, v in reply.items()
        ]
    return reply  # type: ignore[return-value]
