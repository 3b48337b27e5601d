"""The folder that the processes of one server write their statistics to."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Above the second that a worker may outlive its engine (`vllm_integration/process_lifetime.py`).
_REMOVE_S = 3.0
_POLL_S = 0.05


def make() -> str:
    """Path of a new, empty folder."""
    return tempfile.mkdtemp(prefix="bmt-stats-")


def remove(folder: str) -> None:
    """Remove the folder, also while a process that is ending still writes there.

    A file that comes while the others are removed makes `shutil.rmtree` and
    `tempfile.TemporaryDirectory` fail, and a server that stopped as it should would end in a
    traceback. After three seconds the folder is left.
    """
    deadline = time.monotonic() + _REMOVE_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder) or time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


@contextmanager
def stats_folder() -> Iterator[str]:
    """Path of a new folder for the time of the block."""
    folder = make()
    try:
        yield folder
    finally:
        remove(folder)
