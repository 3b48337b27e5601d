"""Masks of a run in training, which a disk that is full does not end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bmt_core import Mask

from bmt_trainer.errors import OutputError


class Masks:
    """Files of masks; one that the disk refuses stays in memory, and is tried again.

    write: raises OutputError, of several processes in all; say: shows a line.
    """

    def __init__(self, write: Callable[[Mask, Path], None], say: Callable[[str], None]) -> None:
        self._write, self._say = write, say
        self._waiting: dict[Path, Mask] = {}

    def save(self, mask: Mask, path: Path, *, alone: bool = False) -> None:
        """Write a mask, or keep it. alone: those that wait are needed no more."""
        if alone:
            self._waiting.clear()
        try:
            self._write(mask, path)
        except OutputError as error:
            self._waiting[path] = mask
            self._say(f"{error}; training goes on, and it is tried again after each step")

    def retry(self) -> None:
        """Write those that wait."""
        for path, mask in list(self._waiting.items()):
            try:
                self._write(mask, path)
            except OutputError:
                return
            del self._waiting[path]
            self._say(f"{path} is written now")

    def waiting(self, path: Path) -> Mask | None:
        """The mask of a file that is not written yet."""
        return self._waiting.get(path)
