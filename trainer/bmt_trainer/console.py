"""What a run shows while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from bmt_trainer.distributed import is_first

Advance = Callable[..., None]

# A log file gets a line this often, and no carriage returns.
_LINE_SECONDS = 10.0


class Display:
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self, console: Console | None = None) -> None:
        # Of several processes one shows what all of them do.
        self.console = console or Console(stderr=True, quiet=not is_first())

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show one stage; call what it yields with the units done and a text about them."""
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


class ShowSteps(TrainerCallback):
    """Passes a trainer's steps on to a stage, and the last value of `figure` that it logged."""

    def __init__(self, advance: Advance, figure: str = "loss") -> None:
        self._advance, self._figure = advance, figure

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        name = self._figure
        values = [entry[name] for entry in state.log_history[-2:] if name in entry]
        self._advance(1, f"{name} {float(values[-1]):.3f}" if values else "")
