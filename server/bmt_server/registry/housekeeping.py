"""Removal of orphaned blobs by the servers themselves: each hour, and when the registry is full.

All API processes of all servers run it; a lease in the registry lets one of them do the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from redis.exceptions import RedisError

from bmt_server.errors import ApiError
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.lua import TAKE_LEASE
from bmt_server.registry.maintenance import collect_orphans
from bmt_server.registry.registry import Registry

logger = logging.getLogger("vllm.bmt_server")

LEASE = PREFIX + "gc"
_EVERY_S = 3600.0
_WHEN_FULL_S = 10.0
_CANCEL_S = 0.2


class Housekeeper:
    """Background task that collects orphans, from `start` to `close`."""

    def __init__(self, registry: Registry, every_s: float = _EVERY_S) -> None:
        self._registry = registry
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bmt-housekeeping")

    async def close(self) -> None:
        task, self._task = self._task, None
        # Repeated until it ends; see RegistryReplica.close.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_S)

    async def _run(self) -> None:
        while True:
            # Apart from each other, so that servers started together do not all ask at once.
            wait_s = self._every_s * (0.9 + 0.2 * secrets.randbelow(1000) / 1000)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._registry.full.wait(), wait_s)
            full = self._registry.full.is_set()
            self._registry.full.clear()
            try:
                if await self._leased(_WHEN_FULL_S if full else 0.9 * self._every_s, full):
                    found = await collect_orphans(self._registry)
                    if found.removed:
                        logger.info(
                            "Removed %d blobs without a version from the mask registry: %.1f MB.",
                            found.removed,
                            found.bytes / 1e6,
                        )
            except (ApiError, RedisError) as error:
                logger.info("Blobs without a version were not collected: %s.", error)

    async def _leased(self, for_s: float, full: bool) -> bool:
        """True for the one process that may collect during the next `for_s` seconds."""
        connection, lease = self._registry.connection, f"{LEASE}:full" if full else LEASE
        milliseconds = max(1, int(for_s * 1000))
        return bool(
            await connection.call(lambda: connection.quick.eval(TAKE_LEASE, 1, lease, milliseconds))
        )
