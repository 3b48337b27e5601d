"""Output of the commands: data on stdout, notes on stderr, one document with `--json`.

Color and progress bars appear on terminals only (rich honors NO_COLOR). Control characters in text
from a server, a file or a model are escaped before they are printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bmt_client import BmtClientError

T = TypeVar("T")

SCHEMA = 2  # of --json documents; increases if a field changes its meaning or is removed
# C0 except newline and tab, DEL, C1 and bidi overrides: they would control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_WHOLE = frozenset({"DIGEST", "KIND", "SHAPE"})  # short columns that are never folded


class Output:
    """Writer of results, notes, errors and progress."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._streaming_failed = False  # the document has the error already
        self.stdout = _console(stderr=False)
        self.stderr = _console(stderr=True)

    def data(self, value: Any, show: Callable[[Console], None]) -> None:
        """Print the command's result: `value` with `--json`, else by `show`."""
        if self.as_json:
            self._document({"data": value})
        else:
            show(self.stdout)

    def stream(
        self,
        values: Iterable[T],
        document: Callable[[T], Any],
        show: Callable[[list[T], bool], None],
        at_once: int,
    ) -> int:
        """Print a list of any length as it arrives; return its length.

        With `--json` one document, of which an error of a later page is a part. Else by `show`,
        with at most `at_once` values, and True for the first ones.
        """
        if self.as_json:
            return self._stream_document(values, document)
        count, left = 0, iter(values)
        while some := list(islice(left, at_once)):
            show(some, count == 0)
            count += len(some)
        return count

    def _stream_document(self, values: Iterable[T], document: Callable[[T], Any]) -> int:
        out, count, left = self.stdout.file, 0, iter(values)
        # An error before the first value has a document of its own.
        value = next(left, None)
        out.write(f'{{\n  "schema": {SCHEMA},\n  "data": [')
        try:
            while value is not None:
                text = json.dumps(document(value), indent=2).replace("\n", "\n    ")
                out.write(("," if count else "") + "\n    " + text)
                count += 1
                value = next(left, None)
        except BmtClientError as error:
            self._streaming_failed = True
            out.write(f'],\n  "error": {json.dumps(error.as_dict())}\n}}\n')
            raise
        out.write("\n  ]\n}\n" if count else "]\n}\n")
        out.flush()
        return count

    def note(self, text: str) -> None:
        """Print a note; omitted with `--json`."""
        if not self.as_json:
            self.stderr.print(Text(printable(text), style="dim"))

    def error(self, error: BmtClientError, hint: str | None) -> None:
        """Print the error and a hint on stderr; with `--json` also a document on stdout."""
        if self.as_json and not self._streaming_failed:
            self._document({"error": {**error.as_dict(), "hint": hint}})
        line = Text.assemble(("error: ", "bold red"), printable(error.message, lines=False))
        details = [str(error.status)] if error.status else []
        details += [error.code] if error.status else []
        details += [f"request {error.request_id}"] if error.request_id else []
        if details:
            line.append(f" ({printable(', '.join(details), lines=False)})", style="dim")
        self.stderr.print(line)
        if hint:
            self.stderr.print(Text.assemble(("hint: ", "bold"), printable(hint, lines=False)))

    @contextmanager
    def progress(self, verb: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar for one transfer; yields its callback."""
        if self.as_json or not self.stderr.is_terminal:
            yield lambda done, total: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn())
        with Progress(*columns, console=self.stderr, transient=True) as bar:
            task = bar.add_task(verb, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _document(self, value: dict[str, Any]) -> None:
        # ASCII only: a pipe may have any encoding.
        print(json.dumps({"schema": SCHEMA, **value}, indent=2), file=self.stdout.file, flush=True)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Text | str]],
    numbers: Sequence[str] = (),
    *,
    head: bool = True,
) -> None:
    """Print a table without frame; columns in `numbers` are right-aligned.

    A pipe gets one line for the column names and one for each row, without a rule. head: print the
    names of the columns.
    """
    rule = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(
        box=rule if head else None,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        show_header=head,
    )
    for column in columns:
        if column in numbers or column in _WHOLE:
            table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
        else:
            # Folded, not cut: a name must be copyable.
            table.add_column(column, overflow="fold", min_width=8)
    for row in rows:
        table.add_row(*(Text(printable(c)) if isinstance(c, str) else c for c in row))
    console.print(table)


def pairs(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Table of names and values, one pair per line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), Text(printable(value)) if isinstance(value, str) else value)
    return table


def print_facts(console: Console, rows: Sequence[tuple[str, str | Text]], metadata: object) -> None:
    """Print facts, then the metadata, one row per leaf: `eval.accuracy  0.94`."""
    console.print(pairs(rows))
    if leaves := list(_leaves(metadata, "")):
        console.print(Text("metadata", style="bold"))
        console.print(Padding(pairs(leaves), (0, 0, 0, 2), expand=False))


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, f"{value:.6g}" if isinstance(value, float) else str(value)


def printable(text: str, *, lines: bool = True) -> str:
    """Replace control characters in `text` by escapes."""
    text = _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)
    return text if lines else text.replace("\n", " ").replace("\t", " ")


def short(digest: str) -> str:
    return digest[:12]


def size(count: int) -> str:
    """Format a byte count in decimal units: 61.2 kB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def percent(share: float) -> str:
    """Format a share as a percentage: 0.206 %."""
    return f"{100 * share:.3g} %" if share else "0 %"


def age(created: str) -> str:
    """Age of an ISO 8601 time: 5 min, 3 d."""
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return created
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit != "d" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return "now"


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        # In a pipe every row is one line and nothing is cut.
        console = Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=10_000)
    return console
