"""Usage of one API process, added to the registry's counts in batches.

A request costs two additions in memory. Every two seconds, and at the end of the process, what has
been counted goes to the registry. While it does not answer, counting goes on: the number of lines
is bounded, beyond it counts lose their mask, and beyond twice that number they are lost, which a
metric and the log say. A process that is killed loses the last two seconds, and the tokens of the
requests that ran.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from redis.exceptions import RedisError

from bmt_server.api.usage.caller import Caller
from bmt_server.errors import ApiError
from bmt_server.registry.connection import end_task
from bmt_server.registry.usage.counts import MAX_BATCH, OTHER, Counts, Slot, UsageStore, today

logger = logging.getLogger("vllm.bmt_server")

FLUSH_S = 2.0
MAX_LINES = 10_000


class UsageCounter:
    """Counts by day, tenant, key and mask, flushed from `start` to `close`.

    on_lost: called with the number of requests and tokens that were not counted.
    """

    def __init__(
        self,
        store: UsageStore,
        on_lost: Callable[[int], None] = lambda amount: None,
        *,
        flush_s: float = FLUSH_S,
        max_lines: int = MAX_LINES,
    ) -> None:
        self._store, self._on_lost = store, on_lost
        self._flush_s, self._max_lines = flush_s, max_lines
        self._lines: dict[Slot, Counts] = {}
        # The batch whose reply has not come, and its number.
        self._sending: dict[Slot, Counts] = {}
        self._number = 0
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failed = False
        self._lost = False

    @property
    def waiting(self) -> int:
        """Lines that the registry has not confirmed."""
        return len(self._lines) + len(self._sending)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bmt-usage")

    async def close(self) -> None:
        """Send what is left, if the registry answers, and stop."""
        task, self._task = self._task, None
        await end_task(task)
        await self._attempt()
        if self.waiting:
            logger.warning("Usage of %d lines was not sent to the registry.", self.waiting)

    def add(self, caller: Caller, counts: Counts) -> None:
        """Count for a caller, under the present day."""
        slot = Slot(today(), caller.tenant, caller.key_id, caller.mask)
        line = self._lines.get(slot)
        if line is None and len(self._lines) >= self._max_lines:
            slot = replace(slot, mask=OTHER)
            line = self._lines.get(slot)
            if line is None and len(self._lines) >= 2 * self._max_lines:
                self._lose(counts)
                return
        if line is None:
            line = self._lines[slot] = Counts()
        line.add(counts)

    async def flush(self) -> None:
        """Send all that has been counted before. Raises ApiError; the rest is sent later."""
        async with self._lock:
            left = len(self._lines) + len(self._sending)
            while left > 0:
                if not self._sending:
                    self._number += 1
                    some = dict(islice(self._lines.items(), MAX_BATCH))
                    for slot in some:
                        del self._lines[slot]
                    self._sending = some
                await self._store.add(self._number, self._sending)
                left -= len(self._sending)
                self._sending = {}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self.flush()
        except (ApiError, RedisError) as error:
            if not self._failed:
                logger.warning("Usage is counted here until the registry takes it: %s.", error)
            self._failed = True
            return
        if self._failed:
            logger.info("The registry takes usage again.")
        self._failed = self._lost = False

    def _lose(self, counts: Counts) -> None:
        self._on_lost(sum(counts.to_dict().values()))
        if not self._lost:
            logger.error(
                "Usage is lost: %d lines wait for the registry, which is the limit.",
                len(self._lines),
            )
        self._lost = True
