"""Settings of this process that make training on a CPU bearable and its output readable."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for this process, and say whether it does.

    By default each tensor of a few MB is a fresh mapping, whose pages the kernel clears one by
    one: on a virtual machine that took 10 times as long as the arithmetic on them. One arena,
    because the backward pass runs in another thread and frees what the forward pass allocated.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1))
    return 0 not in [mallopt(name, value) for name, value in settings]


@contextmanager
def only_our_progress() -> Iterator[None]:
    """Silence the bars of transformers and datasets within the block: a run shows its own."""
    import datasets.utils
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled(), not datasets.utils.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown[0]:
            logging.enable_progress_bar()
        if shown[1]:
            datasets.enable_progress_bars()
