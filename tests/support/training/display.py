"""Displays of a run: one whose lines a test reads, and one that shows nothing."""

from __future__ import annotations

import io

from bmt_trainer.console import Display
from rich.console import Console


def quiet() -> Display:
    """A display that shows nothing."""
    return Display(Console(file=io.StringIO()))


class Lines(Display):
    """A display that keeps its text in `text`."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        super().__init__(Console(file=self._file, width=10_000))

    @property
    def text(self) -> str:
        """All that was shown."""
        return self._file.getvalue()
