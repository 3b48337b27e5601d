"""Files of the server's own folder without a name: they end with the process."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bmt_server.errors import RegistryFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def scratch_file(cache_dir: str) -> Iterator[BinaryIO]:
    """A file of the server's own folder, which has no name there and ends with the process.

    Raises RegistryFull.
    """
    folder = Path(cache_dir)
    with disk():
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    try:
        yield file
    finally:
        # Closing writes again whatever a full disk has not taken; the error was raised before.
        with contextlib.suppress(OSError):
            file.close()


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """Raise RegistryFull for a write that the disk has no room for."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RegistryFull("the server's disk is full; try again later") from None
