"""Places for lines of batches in this process: what live requests leave.

Live requests come first. While there are none, lines take all places of batches; while some run,
or did a moment ago, they take a quarter at most and begin one by one, and none begins while lines
and live requests together take more than all of them. With vLLM's `--scheduling-policy priority`,
lines wait in the engine behind live requests too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bmt_server.api.admission import SequenceLimiter

_LIVE_SHARE = 4
# Clients that ask one question after another have pauses, in which their next ones come.
_LATELY_S = 2.0
# A batch with a line that may begin asks many times a second; one that pauses waits for no place.
_ASKS_S = 0.5


class Room:
    """Places of all batches that run here. most: sequences of lines at a time.

    limiter: counts the sequences of live requests.
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
        live, places = self._limiter.live, self._places
        own, share = self._of_batch[batch_id], self._share
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

    def pause_s(self, line_s: float) -> float:
        """Seconds between the first steps of a batch's lines that take `line_s` each.

        Lines that begin together have their prompts in one step, which live requests wait for. So
        they begin one by one while some of these run.
        """
        return line_s / self._share if self._live else 0.0

    @property
    def _live(self) -> bool:
        return self._limiter.live_within(_LATELY_S)

    @property
    def _places(self) -> int:
        return max(1, self._most // _LIVE_SHARE) if self._live else self._most

    @property
    def _share(self) -> int:
        return max(1, self._places // max(1, len(self._of_batch)))

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
