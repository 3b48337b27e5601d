"""Turns on the event loop for work that holds it for milliseconds."""

from __future__ import annotations

import asyncio

#: Shortest work that is followed by a pause.
PAUSE_FROM_S = 0.002


class Turns:
    """One piece of long work at a time, and after it a pause of the same length.

    Many such pieces that become ready together would run one after the other, and everything else,
    probes and streams included, would wait for all of them. A thread is no help: parsing and
    validation hold the interpreter's lock.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self) -> None:
        """Return when it is the caller's turn, which lasts until the caller waits for anything."""
        await self._lock.acquire()
        loop = asyncio.get_running_loop()
        # Runs when the caller's step of the loop has ended.
        loop.call_soon(self._end, loop, loop.time())

    def _end(self, loop: asyncio.AbstractEventLoop, started: float) -> None:
        held_s = loop.time() - started
        if held_s < PAUSE_FROM_S:
            self._lock.release()
        else:
            loop.call_later(held_s, self._lock.release)
