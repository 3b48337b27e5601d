"""Waits of the main thread that a signal ends. Imports no torch.

Python runs a signal's handler in the main thread, between two instructions of its program. A thread
that waits for a lock without a limit executes none, and the system wakes it only if the signal
reaches this very thread while it sleeps: one that another thread receives, or that comes in the
moment before the sleep, would have no effect until the wait is over.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# Seconds after which a wait looks for a signal.
_LOOK_S = 0.25


def result_of(future: Future[T]) -> T:
    """The result of `future`, or its error, once there is one."""
    # Asked first, for a TimeoutError may be the work's own error.
    while not future.done():
        try:
            future.exception(_LOOK_S)
        except TimeoutError:
            continue
    return future.result()


@contextmanager
def threads(number: int, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """A pool for work whose results are waited for inside of the block.

    On an error or a signal, what has not begun is left out and what runs is left alone:
    `ThreadPoolExecutor` as a context waits for both, without a limit.
    """
    pool = ThreadPoolExecutor(number, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def next_of(items: queue.SimpleQueue[T]) -> T:
    """The next of `items`, once there is one."""
    while True:
        try:
            return items.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
