"""Engine heartbeat for hang detection.

vLLM's own health check detects a dead engine but not a hung one. Here every output and every
recorded step is a heartbeat, so that a long response that is not streamed has heartbeats too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """Number of calls that wait for the engine, and the time of its last heartbeat."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting = 0
        self._last = clock()

    @contextmanager
    def track_call(self) -> Iterator[None]:
        """One call to the engine, from its start to its end."""
        if not self._waiting:
            self.beat()  # an idle engine owes no heartbeat
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def beat(self) -> None:
        """Record a heartbeat now."""
        self._last = self._clock()

    def silent_s(self) -> float:
        """Seconds since the last heartbeat, 0 while no call waits for the engine."""
        return self._clock() - self._last if self._waiting else 0.0
