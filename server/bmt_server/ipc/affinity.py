"""CPU affinity of background threads."""

from __future__ import annotations

import os
from contextlib import suppress


def reset_affinity() -> None:
    """Let the calling thread run on all of the parent process's processors.

    A CPU worker is bound to the processors of its OpenMP threads, and its threads inherit that
    binding. A background thread would then take time from the running step while other processors
    are idle.
    """
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
