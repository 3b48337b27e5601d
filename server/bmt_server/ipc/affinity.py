"""Which processors a thread beside the engine's steps may use."""

from __future__ import annotations

import os
from contextlib import suppress


def free_affinity() -> None:
    """Let the calling thread run on any processor of the server's.

    A worker on the CPU is bound to the processors of its OpenMP threads, and threads inherit that:
    loading would take its time from the step, with idle processors beside it.
    """
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
