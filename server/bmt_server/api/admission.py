"""Admission control in one API process: per-key concurrency and rate, and a limit for all keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bmt_server.errors import RateLimited, Unavailable


class KeyLimiter:
    """Concurrency limit and token bucket of each API key.

    concurrency: running requests of one key; rate: requests per second, with a burst of one
    second's worth and at least one. 0 means no limit. Not shared between processes.
    """

    def __init__(
        self, concurrency: int, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._concurrency, self._rate, self._clock = concurrency, rate, clock
        self._burst = max(1.0, rate)
        self._running: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # key id -> (tokens, time of update)

    @contextmanager
    def admit(self, key_id: str) -> Iterator[None]:
        """One request of a key, from its admission to its end. Raises RateLimited."""
        if self._concurrency and self._running.get(key_id, 0) >= self._concurrency:
            raise RateLimited(
                f"this key has {self._concurrency} requests running, which is its limit; wait for "
                "one to end",
                code="too_many_at_once",
            )
        self._take_token(key_id)
        self._running[key_id] = self._running.get(key_id, 0) + 1
        try:
            yield
        finally:
            self._running[key_id] -= 1
            if not self._running[key_id]:
                del self._running[key_id]

    def _take_token(self, key_id: str) -> None:
        if not self._rate:
            return
        now = self._clock()
        tokens, updated = self._buckets.get(key_id, (self._burst, now))
        tokens = min(self._burst, tokens + (now - updated) * self._rate)
        if tokens < 1.0:
            wait_s = (1.0 - tokens) / self._rate
            raise RateLimited(
                f"this key may send {self._rate:g} requests per second; retry in {wait_s:.1f} s",
                code="too_often",
                retry_after=max(1, round(wait_s)),
            )
        self._buckets[key_id] = (tokens - 1.0, now)


class SequenceLimiter:
    """Limit on the sequences that run or wait in the engine, over all keys.

    Replaces vLLM's --max-num-queued-reqs, which is checked before a response starts and again when
    the engine takes the request (vLLM 0.32.0, `v1/engine/async_llm.py`, `check_admission`): a
    request that loses its place in between is refused inside a stream that began with 200, which no
    client retries.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._admitted = 0

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Sequences of one request, from its admission to its end. Raises Unavailable."""
        if self._admitted + sequences > self._limit:
            raise Unavailable(
                f"{self._admitted} of {self._limit} places are taken and this request needs "
                f"{sequences}; retry here or on another replica",
                code="queue_full",
                retry_after=1,
            )
        self._admitted += sequences
        try:
            yield
        finally:
            self._admitted -= sequences
