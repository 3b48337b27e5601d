"""Output of the demo: headings, bars and spinners on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

# Columns where there is no terminal: wide enough for the tables.
WIDTH = 100
# Without a terminal, a long step says this often that it is alive.
_LINE_SECONDS = 10.0


class Display:
    """Writes to standard output and keeps the seconds of each phase."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        self._phases: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        """One line, indented; no markup is read in it."""
        self.console.print(f"  {text}", markup=False, overflow="ellipsis", no_wrap=True)

    def show(self, what: RenderableType) -> None:
        self.console.print(what)

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """A heading now, the seconds at the end, and a row of the summary."""
        start = time.monotonic()
        self.console.print(f"\n[b]{title}[/]")
        yield
        seconds = time.monotonic() - start
        self._phases.append((title, seconds))
        self.console.print(f"  [dim]{duration(seconds)}[/]")

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """For a step of unknown length; call what it yields with what is being done now."""
        if not self.console.is_terminal:
            self.say(text)
            yield self._changes(text)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            line = bar.add_task(text, total=None)
            yield lambda what: bar.update(line, description=what)

    def _changes(self, said: str) -> Callable[[str], None]:
        def change(what: str) -> None:
            nonlocal said
            if what != said:
                said = what
                self.say(what)

        return change

    @contextmanager
    def counting(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """For `total` equal parts; call what it yields after each."""
        if not self.console.is_terminal:
            yield self._lines(text, total)
            return
        columns = (TextColumn("  {task.description:<28}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as bar:
            line = bar.add_task(text, total=total)
            yield lambda: bar.advance(line)

    def _lines(self, text: str, total: int) -> Callable[[], None]:
        start = last = time.monotonic()
        done = 0

        def advance() -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            if done == total or now - last > _LINE_SECONDS:
                last = now
                self.say(f"{text}: {done}/{total}, {now - start:.0f} s")

        return advance

    def summary(self) -> None:
        """A row for each phase, and their sum."""
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for title, seconds in self._phases:
            table.add_row(title, duration(seconds))
        table.add_row("[b]all[/]", f"[b]{duration(sum(s for _, s in self._phases))}[/]")
        self.console.print()
        self.console.print(table)

    def start_picture(self) -> None:
        """Keep what is shown from here on for `save_picture`."""
        self.console.record = True

    def save_picture(self, path: Path, title: str) -> None:
        self.console.save_svg(str(path), title=title)


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
