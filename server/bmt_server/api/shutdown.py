"""SIGTERM: say at once that this server is going, refuse what is new, end what runs, then stop.

vLLM's own way aborts everything, or with --shutdown-timeout keeps its port open while the engine
drains, with its utility calls failing (`entrypoints/launchers/launcher.py`, `handle_shutdown`). So
its handler is called only when nothing runs any more, by SIGINT, which it treats alike.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bmt_server.errors import Unavailable

logger = logging.getLogger("vllm.bmt_server")


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Drain:
    """Counts running requests; `begun` once the server was told to stop.

    seconds: how long running requests have to end; stop: what ends the process, with whatever
    still runs.
    """

    def __init__(self, seconds: float, stop: Callable[[], None] = _stop) -> None:
        self.begun = False
        self._seconds, self._stop = seconds, stop
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Take SIGTERM over from vLLM; from the running loop, after vLLM installed its handlers."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.begin)

    @contextmanager
    def one(self) -> Iterator[None]:
        """One request of the engine, to the end of its response. Raises Unavailable."""
        if self.begun:
            raise Unavailable(
                "the server is stopping; ask again, and another will answer",
                code="stopping",
                retry_after=1,
            )
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def begin(self) -> None:
        """Stop when nothing runs any more, or at once when asked a second time."""
        if self.begun:
            self._stop()
            return
        self.begun = True
        logger.info("Stopping: %d requests have %.0f s to end.", self._running, self._seconds)
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), self._seconds)
        except TimeoutError:
            logger.warning("%d requests did not end in time and are cut off.", self._running)
        self._stop()
