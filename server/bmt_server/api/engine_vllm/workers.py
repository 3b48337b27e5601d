"""Interface to all workers of one engine, however they are reached."""

from __future__ import annotations

import asyncio
from typing import Protocol

# Limit on one command. The slowest is a load that fetches the file from the registry itself.
ANSWER_TIMEOUT_S = 30.0


class Workers(Protocol):
    """All workers behind one API process.

    evictions: ids that are no longer resident in some worker, in order.
    """

    evictions: asyncio.Queue[int]

    def resident(self, adapter: int) -> bool:
        """True if every worker has the mask in memory, as far as this process knows."""

    async def load(self, adapter: int, name: str, source: str) -> None:
        """Make a mask resident in every worker, and hold it there. Raises WorkerError."""

    async def drop(self, adapter: int) -> None:
        """End the hold of `load`; never raises."""

    async def pin(self, adapter: int, pinned: bool) -> None:
        """Exempt a resident mask from eviction in every worker. Raises WorkerError."""

    async def close(self) -> None:
        """Close all connections."""
