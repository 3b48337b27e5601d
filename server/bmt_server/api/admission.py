"""How much may be asked of this process at once: by one API key, how often, and by all together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bmt_server.errors import RateLimited, Unavailable


class Admission:
    """Counts running requests of each key, and tokens of a bucket that fills at `rate`.

    concurrency: requests of one key at once; rate: requests a second, with a burst of as many as a
    second brings, at least one. 0 is no limit. Not shared with other processes.
    """

    def __init__(
        self, concurrency: int, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._concurrency, self._rate, self._clock = concurrency, rate, clock
        self._burst = max(1.0, rate)
        self._running: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # key id -> (tokens, when)

    @contextmanager
    def one(self, key_id: str) -> Iterator[None]:
        """One request of a key, from its admission to its end. Raises RateLimited."""
        if self._concurrency and self._running.get(key_id, 0) >= self._concurrency:
            raise RateLimited(
                f"this key has {self._concurrency} requests running, which is its limit; wait for "
                "one to end",
                code="too_many_at_once",
            )
        self._take(key_id)
        self._running[key_id] = self._running.get(key_id, 0) + 1
        try:
            yield
        finally:
            self._running[key_id] -= 1
            if not self._running[key_id]:
                del self._running[key_id]

    def _take(self, key_id: str) -> None:
        if not self._rate:
            return
        now = self._clock()
        tokens, at = self._buckets.get(key_id, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        if tokens < 1.0:
            wait = (1.0 - tokens) / self._rate
            raise RateLimited(
                f"this key may send {self._rate:g} requests a second; try again in {wait:.1f} s",
                code="too_often",
                retry_after=max(1, round(wait)),
            )
        self._buckets[key_id] = (tokens - 1.0, now)


class Queue:
    """Counts sequences that run or wait, of all keys; `places` is how many there may be.

    In place of vLLM's --max-num-queued-reqs, which is looked at before a response starts and again
    when the engine takes the request (`v1/engine/async_llm.py`, `check_admission`): whoever loses
    its place in between is refused in a stream that began with 200, which no client retries.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0

    @contextmanager
    def room(self, sequences: int) -> Iterator[None]:
        """Places for one request, from its admission to its end. Raises Unavailable."""
        if self._taken + sequences > self._places:
            raise Unavailable(
                f"{self._taken} of {self._places} places are taken and this request needs "
                f"{sequences}; ask again, or another replica",
                code="queue_full",
                retry_after=1,
            )
        self._taken += sequences
        try:
            yield
        finally:
            self._taken -= sequences
