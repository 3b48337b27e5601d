"""Progress of a run on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback
from transformers.utils import logging

from bmt_trainer.process import is_main_process

#: Advances a stage: units done, and a note shown next to the count.
Advance = Callable[..., None]

# Interval of the lines that a log file gets instead of a bar.
_LINE_SECONDS = 10.0


class Display:
    """Progress output on standard error; standard output stays free for results.

    console: to write to; by default standard error in the main process, and nowhere in the others.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not is_main_process())

    def say(self, text: str) -> None:
        """Print one line without markup."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def color(self) -> bool:
        """True if colors are shown: on a terminal that has them, and NO_COLOR is not set."""
        console = self.console
        return console.is_terminal and console.color_system is not None and not console.no_color

    def show(self, text: Text) -> None:
        """Print styled text; without colors each of its lines stays one line."""
        self.console.print(text, highlight=False, soft_wrap=not self.color)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show the progress of one stage; yields a function that takes units done and a note."""
        show = self._bar if self.console.is_terminal else self._lines
        with show(name, total, done) as advance:
            yield advance

    @contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=total, completed=done, note="")

            def advance(n: int = 1, note: str = "") -> None:
                if note:
                    bar.update(task, note=note)
                bar.update(task, advance=n)

            yield advance

    @contextmanager
    def _lines(self, name: str, total: int, done: int) -> Iterator[Advance]:
        started = last = time.monotonic()
        last_note = ""

        def line() -> None:
            spent = time.monotonic() - started
            self.say(f"{name}: {done}/{total}, {spent:.0f} s{last_note and ', '}{last_note}")

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done, last, last_note
            done, last_note = done + n, note or last_note
            if time.monotonic() - last >= _LINE_SECONDS and done < total:
                last = time.monotonic()
                line()

        yield advance
        line()


class StepProgress(TrainerCallback):
    """Advances a stage at each optimizer step, with the last logged value of `metric` as note."""

    def __init__(self, advance: Advance, metric: str = "loss") -> None:
        self._advance, self._metric = advance, metric

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        name = self._metric
        values = [entry[name] for entry in state.log_history[-2:] if name in entry]
        self._advance(1, f"{name} {float(values[-1]):.3f}" if values else "")


@contextmanager
def hide_library_progress() -> Iterator[None]:
    """Disable the progress bars of transformers and datasets in the block: a run shows its own."""
    enabled = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled[0]:
            logging.enable_progress_bar()
        if enabled[1]:
            datasets.enable_progress_bars()
