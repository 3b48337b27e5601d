"""Upkeep of the registry by the servers themselves.

Each minute, names that have expired are removed: masks of training runs that were killed. Each
hour, and when the registry is full, blobs without a version are; those of versions that a request
removes go within seconds, from an object store within two hours. All API processes of all servers
run both. A script in the registry removes a name once, whoever asks; a lease lets one process do
the work on blobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from redis.exceptions import RedisError

from bmt_server.errors import ApiError
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.blobs.moving import sweep
from bmt_server.registry.connection import end_task
from bmt_server.registry.maintenance import collect_orphans, remove_orphan
from bmt_server.registry.names.changes import Changes
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.periodic import about, take_lease
from bmt_server.registry.registry import Cursor, Registry
from bmt_server.registry.schemas import iso_time

logger = logging.getLogger("vllm.bmt_server")

LEASE = PREFIX + "gc"
_EVERY_S = 3600.0
_EXPIRED_EVERY_S = 60.0
_WHEN_FULL_S = 10.0
_REMOVAL_DELAY_S = 10.0


class Housekeeper:
    """Background tasks that collect orphans and remove expired names, from `start` to `close`.

    expired: names that may be removed at a time, seconds since 1970, as this process knows them;
    on_expired: called after each removal. unused: files of a set that no version
    names, as this process knows at a cursor.
    """

    def __init__(
        self,
        registry: Registry,
        every_s: float = _EVERY_S,
        *,
        expired: Callable[[float], list[NameState]] = lambda now: [],
        unused: Callable[[set[str]], tuple[list[str], Cursor]] = lambda files: ([], (0, b"0")),
        removal_delay_s: float = _REMOVAL_DELAY_S,
        expired_every_s: float = _EXPIRED_EVERY_S,
        on_expired: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._every_s, self._expired_every_s = every_s, expired_every_s
        self._expired, self._on_expired = expired, on_expired
        self._unused, self._removal_delay_s = unused, removal_delay_s
        self._files: set[str] = set()  # of versions that were removed
        self._removal: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run(), name="bmt-housekeeping"),
            asyncio.create_task(self._run_expiry(), name="bmt-expiry"),
        ]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        if self._removal is not None:
            self._removal.cancel()
        for task in tasks:
            await end_task(task)

    def removed(self, files: Iterable[str]) -> None:
        """Remove the files of removed versions soon, unless other versions have them.

        The delay lets requests end that fetch them. files: SHA-256, 64 hex digits each.
        """
        self._files.update(files)
        if self._files and self._removal is None:
            loop = asyncio.get_running_loop()
            self._removal = loop.call_later(self._removal_delay_s, self._start_removal)

    def _start_removal(self) -> None:
        self._removal = None
        task = asyncio.create_task(
            self._attempt(self._remove_files, "Files of removed masks stay for now: %s.")
        )
        self._tasks = [t for t in self._tasks if not t.done()] + [task]

    async def _remove_files(self) -> None:
        """Remove the files noted by `removed`; the collection of orphans takes what fails."""
        files, self._files = self._files, set()
        unused, cursor = self._unused(files)
        changes = Changes(self._registry)
        await changes.start(cursor)
        for digest in unused:
            if await remove_orphan(self._registry, changes, digest) is None:
                return

    async def remove_expired(self) -> int:
        """Remove the names that have expired; the number of them. Raises RegistryDown."""
        now, removed = time.time(), 0
        for state in self._expired(now):
            # Before the removal, whose event may arrive before its reply.
            files = state.versions.files()
            if not await self._registry.delete_expired(state.tenant, state.name, now):
                continue  # renewed meanwhile, or removed by another process
            removed += 1
            self._on_expired()
            self.removed(files)
            logger.info(
                "Removed %s of tenant %s with %d versions: it expired at %s.",
                state.name,
                state.tenant,
                len(files),
                iso_time(state.expires or 0),
            )
        return removed

    async def _run_expiry(self) -> None:
        while True:
            await asyncio.sleep(about(self._expired_every_s))
            await self._attempt(self.remove_expired, "Expired masks were not removed: %s.")

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._registry.full.wait(), about(self._every_s))
            full = self._registry.full.is_set()
            self._registry.full.clear()

            async def collect(full: bool = full) -> None:
                connection, lease = self._registry.connection, f"{LEASE}:full" if full else LEASE
                for_s = _WHEN_FULL_S if full else 0.9 * self._every_s
                if await take_lease(connection, lease, for_s):
                    await sweep(connection, self._registry.blobs)
                    found = await collect_orphans(self._registry, urgent=full)
                    if found.removed:
                        logger.info(
                            "Removed %d blobs without a version from the mask registry: %.1f MB.",
                            found.removed,
                            found.bytes / 1e6,
                        )

            await self._attempt(collect, "Blobs without a version were not collected: %s.")

    async def _attempt(self, work: Callable[[], Awaitable[object]], failed: str) -> None:
        try:
            await work()
        except (ApiError, RedisError) as error:
            logger.info(failed, error)
