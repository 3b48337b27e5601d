"""This process: its rank among the launched ones, and its memory allocator. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def world_size() -> int:
    """The number of processes that the launcher started (WORLD_SIZE), 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The index of this process among them (RANK), from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """True in the one process that writes files and output: rank 0."""
    return rank() == 0


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in this process; returns False without glibc.

    By default glibc maps each tensor of a few MB afresh, and the kernel clears its pages one by
    one; on a virtual machine that took 10 times as long as the arithmetic on them. One arena,
    because the backward pass runs in another thread and frees what the forward pass allocated.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return 0 not in [mallopt(name, value) for name, value in settings]
