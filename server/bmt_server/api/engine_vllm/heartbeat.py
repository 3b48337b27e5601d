"""Whether the engine still does something for the requests that it has.

vLLM's own check knows a dead engine and not a hung one. Here each output and each recorded step is
a sign of life, so a long answer that is not streamed counts too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pulse:
    """Calls that wait for the engine, and when it last gave a sign of life."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting = 0
        self._last = clock()

    @contextmanager
    def call(self) -> Iterator[None]:
        """One request's time in the engine."""
        if not self._waiting:
            self.beat()  # an idle engine need not have said anything
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def beat(self) -> None:
        """The engine did something."""
        self._last = self._clock()

    def still_s(self) -> float:
        """Seconds since it last did, 0 while nothing waits for it."""
        return self._clock() - self._last if self._waiting else 0.0
