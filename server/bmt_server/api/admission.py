"""Admission control in one API process: limits of each key, and of all keys together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bmt_server.errors import BadRequest, RateLimited, Unavailable

_CONCURRENT_UPLOADS = 4
_UPLOADS_OF_A_KEY = 64


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
        self._admitted = self._live = 0
        self._left = -math.inf

    @property
    def live(self) -> int:
        """Sequences that run or wait now and that a client waits for."""
        return self._live

    def live_within(self, seconds: float) -> bool:
        """True if there are such, or were in that time."""
        return self._live > 0 or time.monotonic() - self._left < seconds

    def half_full(self) -> bool:
        """True if requests take at least half of the places."""
        return 2 * self._admitted >= self._limit

    @contextmanager
    def admit(self, sequences: int, *, background: bool = False) -> Iterator[None]:
        """Sequences of one request, from its admission to its end.

        background: no client waits for it. Raises Unavailable, and BadRequest for more sequences
        than there are places.
        """
        if sequences > self._limit:
            raise BadRequest(
                f"this request needs {sequences} places, prompts times choices, and this server "
                f"has {self._limit}; send fewer",
                code="too_many_sequences",
            )
        if self._admitted + sequences > self._limit:
            raise Unavailable(
                f"{self._admitted} of {self._limit} places are taken and this request needs "
                f"{sequences}; retry here or on another replica",
                code="queue_full",
                retry_after=1,
            )
        live = 0 if background else sequences
        self._admitted += sequences
        self._live += live
        try:
            yield
        finally:
            self._admitted -= sequences
            self._live -= live
            if live:
                self._left = time.monotonic()


class UploadLimiter:
    """Bounds on uploads: of each key while they arrive, of all keys while they are worked on.

    A connection that sends nothing takes no memory and no place: bytes count when they have
    arrived, and the places for work are taken when a body is complete.

    work: places for decoding and storing. max_bytes: the largest upload.
    """

    def __init__(self, max_bytes: int) -> None:
        self.work = asyncio.Semaphore(_CONCURRENT_UPLOADS)
        self._all_bytes = 2 * _CONCURRENT_UPLOADS * max_bytes
        self._key_bytes = _CONCURRENT_UPLOADS * max_bytes
        self._arrived = 0
        self._of_key: dict[str, tuple[int, int]] = {}  # key id -> (uploads, bytes that arrived)

    @contextmanager
    def receive(self, key_id: str) -> Iterator[Callable[[int], None]]:
        """One upload, from its head to its end; call the yielded function with each part's size.

        Raises RateLimited for a key beyond its share, Unavailable if all keys' share is taken.
        """
        if self._of_key.get(key_id, (0, 0))[0] >= _UPLOADS_OF_A_KEY:
            raise RateLimited(
                f"this key has {_UPLOADS_OF_A_KEY} uploads open, which is its limit; wait for one "
                "to end",
                code="too_many_at_once",
            )
        arrived = 0

        def add(size: int) -> None:
            nonlocal arrived
            uploads, of_key = self._of_key[key_id]
            if of_key + size > self._key_bytes:
                raise RateLimited(
                    f"the open uploads of this key have more than {self._key_bytes} bytes; wait "
                    "for one to end",
                    code="too_many_at_once",
                )
            if self._arrived + size > self._all_bytes:
                raise Unavailable(
                    f"the open uploads have more than {self._all_bytes} bytes; retry shortly",
                    code="uploads_full",
                )
            arrived += size
            self._arrived += size
            self._of_key[key_id] = (uploads, of_key + size)

        uploads, of_key = self._of_key.get(key_id, (0, 0))
        self._of_key[key_id] = (uploads + 1, of_key)
        try:
            yield add
        finally:
            self._arrived -= arrived
            uploads, of_key = self._of_key[key_id]
            self._of_key[key_id] = (uploads - 1, of_key - arrived)
            if uploads == 1:
                del self._of_key[key_id]
