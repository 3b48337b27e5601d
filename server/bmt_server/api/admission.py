"""How much one API key may ask of this process at once, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bmt_server.api.errors import RateLimited


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
