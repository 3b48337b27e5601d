"""In-memory replica of the registry's names, kept current by the stream of changes.

Requests resolve names against it without a round trip, and continue to do so while Redis is down. A
stream read from a remembered event id misses nothing while the connection holds. The counter of
changes and the id of the last event, compared every few seconds and after every reconnect, reveal
changes that were missed otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from bmt_server.errors import ApiError
from bmt_server.registry.registry import EVENTS, Registry
from bmt_server.registry.schemas import NameState

logger = logging.getLogger("vllm.bmt_server")

_BLOCK_S = 2.0
_RECONCILE_S = 10.0
_PAUSE_S = 0.5
_CANCEL_S = 0.2
# Names per read: parsing takes about 0.1 ms each, on the event loop.
_BATCH = 50


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
        on_change: Callable[[tuple[str, str], NameState | None], None],
        on_keys_change: Callable[[], None],
        on_connection: Callable[[int], None],
    ) -> None:
        self._registry = registry
        self._on_change = on_change
        self._on_keys_change = on_keys_change
        self._on_connection = on_connection
        self._states: dict[tuple[str, str], NameState] = {}
        self._cursor = (-1, b"")  # of the registry: all changes up to it are known here
        self._task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        self._connected = False
        self._logged = ""

    def get(self, tenant: str, name: str) -> NameState | None:
        """State of a name, or None if it has no version."""
        state = self._states.get((tenant, name))
        return state if state is not None and state.versions else None

    def of_tenant(self, tenant: str) -> list[NameState]:
        """States of one tenant's names that have versions, sorted by name."""
        states = [s for (t, _), s in self._states.items() if t == tenant and s.versions]
        return sorted(states, key=lambda s: s.name)

    def expired(self, now: float) -> list[NameState]:
        """Names of all tenants that the servers may remove. now: seconds since 1970."""
        return [s for s in self._states.values() if s.versions and s.has_expired(now)]

    async def refresh(self, tenant: str, name: str) -> NameState | None:
        """Read one name now: after a write by this process, or for a name not known yet."""
        self._take(await self._registry.states([(tenant, name)]))
        return self.get(tenant, name)

    async def sync(self) -> None:
        """Read all names if anything changed since the last time."""
        cursor = await self._registry.cursor()
        if cursor == self._cursor and self.synced.is_set():
            return
        names = await self._registry.names()
        states: list[NameState] = []
        for at in range(0, len(names), _BATCH):
            states += await self._registry.states(names[at : at + _BATCH])
        gone = set(self._states) - set(names)
        for key in gone:
            del self._states[key]
        self._take(states)
        for key in gone:
            self._on_change(key, None)
        # A counter that decreased means that Redis lost acknowledged writes.
        if cursor[0] < self._cursor[0]:
            logger.error(
                "The registry went back from change %d to %d: a failover lost writes.",
                self._cursor[0],
                cursor[0],
            )
        self._cursor = cursor
        self.synced.set()

    def _take(self, states: Iterable[NameState]) -> None:
        new = []
        for state in states:
            key = (state.tenant, state.name)
            if self._states.get(key) != state:
                self._states[key] = state
                new.append(key)
        for key in new:
            self._on_change(key, self.get(*key))

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="bmt-registry-events")

    async def close(self) -> None:
        task, self._task = self._task, None
        # redis-py swallows a cancellation that arrives together with a reply, and the task
        # continues. So cancel until it ends.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_S)

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
                        last = entries[-1][0]
                        await self._apply([fields for _, fields in entries], last)
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

    async def _apply(self, events: list[dict[bytes, bytes]], last: bytes) -> None:
        names, generation = [], self._cursor[0]
        for event in events:
            if event.get(b"kind") == b"keys":
                self._on_keys_change()
                continue
            tenant, _, name = event.get(b"where", b"").decode().partition("/")
            names.append((tenant, name))
            generation = max(generation, int(event.get(b"generation", 0)))
        if names:
            self._take(await self._registry.states(dict.fromkeys(names)))
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
