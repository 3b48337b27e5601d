"""This process: its place among the launched ones, and its memory allocator. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import platform

# Variables by which torchrun and accelerate make a process one of several.
_LAUNCHED = (
    *("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE", "GROUP_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_FSDP"),
)
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


def is_launched_alone() -> bool:
    """True if `accelerate launch` started this process and no other.

    On CPUs it starts one, whatever its --num_processes says (accelerate 1.15).
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ


def has_lost_another(error: BaseException) -> bool:
    """True for the error of a collective whose other processes have ended."""
    named = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
    return world_size() > 1 and (type(error).__name__ in named or "gloo" in str(error))


def leave_launch() -> None:
    """Make this process a single one, also to the libraries that read the launcher's variables."""
    for name in _LAUNCHED:
        os.environ.pop(name, None)


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
