"""Comparisons that were not finished within their bounds, and their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

#: Seconds of CPU that one comparison may take; ordinary ones take milliseconds.
CPU_SECONDS = 5.0
#: Bytes of address space of a process that compares; it begins with a tenth.
MEMORY_BYTES = 1 << 30


class Overrun(Exception):
    """A comparison took more time or memory than it may."""


@dataclass
class Count:
    """Number of comparisons that overran."""

    number: int = 0


_COUNT: ContextVar[Count | None] = ContextVar("overruns", default=None)


@contextmanager
def counting() -> Iterator[Count]:
    """Count what this thread notes in the block."""
    count = Count()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)


def note() -> None:
    """Count an overrun, if anything counts."""
    if (count := _COUNT.get()) is not None:
        count.number += 1


def described(number: int | float) -> str:
    """The number of overruns as a part of a line."""
    return (
        f"{number:g} not finished by the math grader in {CPU_SECONDS:g} s of CPU and "
        f"{MEMORY_BYTES >> 30} GiB, so wrong"
    )
