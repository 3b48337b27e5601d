"""Batches of this server's base that this process runs: taken by lease, some at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from functools import partial

from redis.exceptions import RedisError

from bmt_server.api.asgi import App
from bmt_server.api.batches.parts import Parts
from bmt_server.api.batches.run import LEASE_S, BatchRun
from bmt_server.errors import ApiError
from bmt_server.registry.batches import transitions
from bmt_server.registry.batches.record import Batch
from bmt_server.registry.connection import end_task
from bmt_server.registry.leased.fairness import next_records
from bmt_server.registry.leased.record import new_token
from bmt_server.registry.periodic import about

logger = logging.getLogger("vllm.bmt_server")

#: Batches that one process runs at a time, in equal shares.
MAX_AT_ONCE = 4
POLL_S = 5.0
# Time in which runs keep the answers that they have, when the process ends.
_CLOSE_S = 10.0


class BatchRunner:
    """Takes batches from `start` to `close`, of the tenants that had the least time first."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runs: dict[asyncio.Task[None], BatchRun] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._worker = f"{socket.gethostname()[:100]}:{os.getpid()}"

    def start(self, app: App) -> None:
        """Run batches on the app, with all its layers."""
        if self._parts.settings.batch_sequences:
            self._task = asyncio.create_task(self._run(app), name="bmt-batches")

    async def close(self) -> None:
        """End all runs; another server goes on with their batches."""
        task, self._task = self._task, None
        await end_task(task)
        for run in self._runs.values():
            run.leave()
        if self._runs:
            await asyncio.wait(self._runs, timeout=_CLOSE_S)
        for one in list(self._runs):
            await end_task(one)

    def wake(self) -> None:
        """Look for batches now: there is a new one."""
        self._wake.set()

    async def _run(self, app: App) -> None:
        while True:
            self._wake.clear()
            try:
                while len(self._runs) < MAX_AT_ONCE and await self._usable():
                    batch = await self._take()
                    if batch is None:
                        break
                    run = BatchRun(self._parts, app, batch)
                    started = asyncio.create_task(run.run(), name=batch.id)
                    self._runs[started] = run
                    started.add_done_callback(self._runs.pop)
            except (ApiError, RedisError) as error:
                logger.info("Batches were not looked for: %s.", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), about(POLL_S))

    async def _usable(self) -> bool:
        return not self._parts.shutdown.started and await self._parts.engine.healthy()

    async def _take(self) -> Batch | None:
        """Lease the next batch; None if none waits."""
        store, base = self._parts.store, self._parts.settings.fingerprint
        own = [run.id for run in self._runs.values()]
        async for waiting in next_records(store, base, own):
            make = partial(
                transitions.leased,
                token=new_token(),
                worker=self._worker,
                lease_ms=int(LEASE_S * 1000),
            )
            batch, changed = await store.change(waiting.id, make)
            if changed:
                return batch
            if batch.ended:
                await store.drop(base, batch.tenant, batch.id)
        return None
