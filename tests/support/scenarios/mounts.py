"""File systems mounted for a test, which is skipped where that is not allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(at: Path, *options: str) -> Iterator[Path]:
    """Mount at a new folder, by the options of mount(8), until the block ends."""
    at.mkdir()
    done = subprocess.run(["mount", *options, str(at)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def small_disk(at: Path, size: int) -> AbstractContextManager[Path]:
    """A file system of `size` bytes in memory."""
    return mounted(at, "-t", "tmpfs", "-o", f"size={size}", "none")
