"""Places for lines of batches in this process: what live requests leave.

Live requests come first. While none runs, lines take all places of batches; while some do, they
take a quarter at most, and none begins while lines and live requests together take more than all of
them. With vLLM's `--scheduling-policy priority`, lines wait in the engine behind live requests too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bmt_server.api.admission import SequenceLimiter

_LIVE_SHARE = 4
# A batch with a line that may begin asks many times a second; one that pauses waits for no place.
_ASKS_S = 0.5


class Room:
    """Places of all batches that run here. most: sequences of lines at a time.

    limiter: counts the sequences of all requests, those of lines included.
    """

    def __init__(self, most: int, limiter: SequenceLimiter) -> None:
        self._most, self._limiter = most, limiter
        self._running = 0
        self._of_batch: dict[str, int] = {}  # batches that run here -> their sequences
        self._keys: dict[str, str] = {}  # batches that run here -> ids of their keys
        # A batch that waits for all places at once, and until when: others begin no line meanwhile,
        # or the places would never all be free.
        self._large, self._until = "", 0.0

    @contextmanager
    def batch(self, batch_id: str, key_id: str) -> Iterator[None]:
        """A batch that runs here; batches at the same time have equal shares."""
        self._of_batch[batch_id], self._keys[batch_id] = 0, key_id
        try:
            yield
        finally:
            del self._of_batch[batch_id], self._keys[batch_id]
            self._take_back(batch_id)

    def fits(self, batch_id: str, sequences: int, most: int = 0) -> bool:
        """True if a line may begin. most: sequences of its key at a time; 0: no further bound."""
        if self._large != batch_id and time.monotonic() < self._until:
            return False
        live = max(0, self._limiter.admitted - self._running)
        places = self._most if not live else max(1, self._most // _LIVE_SHARE)
        own = self._of_batch[batch_id]
        share = max(1, places // len(self._of_batch))
        if most:
            key = self._keys[batch_id]
            of_key = [n for one, n in self._of_batch.items() if self._keys[one] == key]
            if sum(of_key) and sum(of_key) + sequences > most:
                return False
            share = min(share, max(1, most // len(of_key)))
        if not own and self._running + sequences > places:
            # A request of many sequences runs alone.
            free = not live or live + sequences <= self._most
            if free and sequences > places:
                self._large, self._until = batch_id, time.monotonic() + _ASKS_S
            return free and not self._running
        if own and own + sequences > share:
            return False
        return (
            self._running + sequences <= places and live + self._running + sequences <= self._most
        )

    def take(self, batch_id: str, sequences: int) -> None:
        """Begin a line."""
        self._running += sequences
        self._of_batch[batch_id] += sequences
        self._take_back(batch_id)

    def give(self, batch_id: str, sequences: int) -> None:
        """End a line."""
        self._running -= sequences
        self._of_batch[batch_id] -= sequences

    def _take_back(self, batch_id: str) -> None:
        if self._large == batch_id:
            self._large, self._until = "", 0.0
