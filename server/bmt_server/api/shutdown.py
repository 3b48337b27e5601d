"""Graceful shutdown on SIGTERM or SIGINT: turn unready, refuse new requests, finish running ones.

vLLM's own handler aborts running requests at once, or with --shutdown-timeout keeps accepting
connections while the engine drains and its utility calls fail (vLLM 0.32.0,
`entrypoints/launchers/launcher.py`, `handle_shutdown`). The handlers here replace its own, and the
server ends when no request runs any more. A second signal ends it at once. The signals that a
server ignores are in `vllm_integration/process_lifetime.py`.
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


def interrupt_process() -> None:
    """Send SIGINT to this process, which ends vLLM's server."""
    os.kill(os.getpid(), signal.SIGINT)


class Shutdown:
    """Count of running requests, and the sequence that follows SIGTERM.

    timeout_s: time that running requests have to finish; stop: ends the process and with it the
    requests that still run.
    """

    def __init__(self, timeout_s: float, stop: Callable[[], None] = interrupt_process) -> None:
        self.started = False
        self._timeout_s, self._stop = timeout_s, stop
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Replace vLLM's handlers, on the running loop and after vLLM has set its own."""
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, self.start)

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """One request to the engine, until the end of its response. Raises Unavailable."""
        if self.started:
            raise Unavailable(
                "the server is stopping; retry, and another replica will answer",
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

    def start(self) -> None:
        """Stop as soon as no request runs; the second call stops at once."""
        if self.started:
            self._stop()
            return
        self.started = True
        logger.info("Stopping: %d requests have %.0f s to finish.", self._running, self._timeout_s)
        self._stopping = asyncio.get_running_loop().create_task(self._stop_when_idle())

    async def _stop_when_idle(self) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), self._timeout_s)
        except TimeoutError:
            logger.warning("%d requests did not finish in time and are aborted.", self._running)
        self._stop()
