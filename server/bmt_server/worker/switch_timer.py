"""Time of the changes of the mask in the live weights.

A GPU runs a switch after the call that enqueues it has returned, so a host clock would measure the
enqueue. There the time is that between two events on the step's stream, read when both have
passed: no step waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class SwitchTimer(Protocol):
    """Sum of the times of measured blocks. seconds: of those that have ended."""

    @property
    def seconds(self) -> float: ...

    @contextmanager
    def measure(self) -> Iterator[None]: ...


class HostTimer:
    """Timer of work that the calling thread does itself."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class EventTimer:
    """Timer of work that the calling thread enqueues on the device's current stream."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        """make_event: returns an event with `record`, `query` and `elapsed_time` (ms)."""
        self._make_event = make_event
        self._total = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    @property
    def seconds(self) -> float:
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._total += start.elapsed_time(end) / 1000
        return self._total

    @contextmanager
    def measure(self) -> Iterator[None]:
        start, end = self._make_event(), self._make_event()
        start.record()
        yield
        end.record()
        self._pending.append((start, end))


def make_timer(device: torch.device) -> SwitchTimer:
    """The timer for switches of weights on `device`."""
    if device.type != "cuda":
        return HostTimer()
    return EventTimer(lambda: torch.cuda.Event(enable_timing=True))
