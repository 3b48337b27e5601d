"""CPU time of a piece of work, where a test has a bound for it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

# A core that is shared, or a collection of garbage, makes one turn twice as long: what is
# slow by itself is slow each time.
TURNS = 5


def least_cpu(work: Callable[[], object], bound_s: float) -> float:
    """Seconds of this thread: of the first turn within the bound, or the least of all."""
    least = float("inf")
    for _ in range(TURNS):
        started = time.thread_time()
        work()
        least = min(least, time.thread_time() - started)
        if least < bound_s:
            break
    return least


async def answer_and_cpu(ask: Callable[[], Awaitable[T]], bound_s: float) -> tuple[T, float]:
    """An answer, and the seconds of this thread as `least_cpu` has them."""
    least = float("inf")
    for _ in range(TURNS):
        started = time.thread_time()
        answer = await ask()
        least = min(least, time.thread_time() - started)
        if least < bound_s:
            break
    return answer, least
