"""Output of the commands: data on stdout, notes on stderr, one document with `--json`.

Color and progress bars appear on terminals only (rich honors NO_COLOR). Control characters in text
from a server, a file or a model are escaped before they are printed.
"""

from __future__ import annotations

import json
import re
import sys
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

from bmt_client import BmtClientError, UsageError, Version

T = TypeVar("T")

SCHEMA = 2  # of --json documents; increases if a field changes its meaning or is removed
# C0 except newline and tab, DEL, C1 and bidi overrides: they would control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_WHOLE = frozenset({"DIGEST", "KIND", "SHAPE"})  # short columns that are never folded


class Output:
    """Writer of results, notes, errors and progress."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.documents = 0  # printed so far
        self.stdout = _console(stderr=False)
        self.stderr = _console(stderr=True)

    def data(self, value: Any, show: Callable[[Console], None]) -> None:
        """Print the command's result: `value` with `--json`, else by `show`."""
        if self.as_json:
            self.document({"data": value})
        else:
            show(self.stdout)

    def line(self, text: str | Text) -> None:
        """Print one line of a result."""
        self.stdout.print(text, soft_wrap=not on_terminal(self.stdout))

    def takes_file(self, output: str | None) -> bool:
        """True if `output` sends a file to stdout. Raises UsageError with `--json`."""
        if output == "-" and self.as_json:
            raise UsageError("-o - writes the file to stdout, where --json writes its document")
        return output == "-"

    def file(self, data: bytes) -> None:
        """Write a file's bytes to stdout."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

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
        self.documents += 1
        out.write(f'{{\n  "schema": {SCHEMA},\n  "data": [')
        try:
            while value is not None:
                # One line for each value: the encoder with line breaks is ten times as slow.
                out.write(("," if count else "") + "\n    " + json.dumps(document(value)))
                count += 1
                value = next(left, None)
        except (BmtClientError, KeyboardInterrupt) as error:
            if not isinstance(error, BmtClientError):
                error = BmtClientError("interrupted", code="interrupted")
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
        if self.as_json and not self.documents:
            self.document({"error": {**error.as_dict(), "hint": hint}})
        self.failed(error, "", hint)

    def failed(self, error: BmtClientError, subject: str, hint: str | None) -> None:
        """Print the error on stderr as one line, and the hint as another. subject: `math: `."""
        message = printable(subject + error.message, lines=False)
        line = Text.assemble(("error: ", "bold red"), message)
        details = [str(error.status)] if error.status else []
        details += [error.code] if error.status else []
        details += [f"request {error.request_id}"] if error.request_id else []
        if details:
            line.append(f" ({printable(', '.join(details), lines=False)})", style="dim")
        soft = not on_terminal(self.stderr)
        self.stderr.print(line, soft_wrap=soft)
        if hint:
            text = Text.assemble(("hint: ", "bold"), printable(hint, lines=False))
            self.stderr.print(text, soft_wrap=soft)

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

    def document(self, value: dict[str, Any]) -> None:
        """Print the one document of `--json`."""
        self.documents += 1
        # ASCII only: a pipe may have any encoding.
        print(json.dumps({"schema": SCHEMA, **value}, indent=2), file=self.stdout.file, flush=True)


def on_terminal(console: Console) -> bool:
    """True if the output goes to a terminal; FORCE_COLOR makes no pipe one."""
    return console.file.isatty()


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Text | str]],
    numbers: Sequence[str] = (),
    *,
    head: bool = True,
) -> None:
    """Print a table without frame; columns in `numbers` are right-aligned.

    A pipe gets one line for the column names and one for each row, with a tab between the columns
    and nothing cut. head: print the names of the columns.
    """
    if not on_terminal(console):
        lines = [[str(cell) for cell in row] for row in ([columns, *rows] if head else rows)]
        text = "".join("\t".join(map(_cell, line)) + "\n" for line in lines)
        console.file.write(text)
        return
    table = Table(
        box=box.SIMPLE_HEAD if head else None,
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


def print_pairs(console: Console, rows: Sequence[tuple[str, str | Text]], indent: int = 0) -> None:
    """Print names and values, one pair per line; on a terminal, long values are folded."""
    if not on_terminal(console):
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            line = f"{' ' * indent}{printable(name):<{width}}  {_cell(str(value))}".rstrip()
            console.file.write(f"{line}\n")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), Text(printable(value)) if isinstance(value, str) else value)
    console.print(Padding(table, (0, 0, 0, indent), expand=False))


def print_facts(console: Console, rows: Sequence[tuple[str, str | Text]], metadata: object) -> None:
    """Print facts, then the metadata, one row per leaf: `eval.accuracy  0.94`."""
    print_pairs(console, rows)
    if leaves := list(_leaves(metadata, "")):
        console.print(Text("metadata", style="bold"))
        print_pairs(console, leaves, indent=2)


def _cell(text: str) -> str:
    """One line without tabs, so that a line is a row."""
    if text.isprintable():
        return text
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


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
    if not on_terminal(console):
        # In a pipe every row is one line and nothing is cut.
        console = Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=10_000)
    return console


def splits(version: Version) -> list[str]:
    """Aliases of which a version is the canary or the shadow, with its shares."""
    parts = (("canary", version.canary_of), ("shadow", version.shadow_of))
    return [f"{alias} ({part} {share:g} %)" for part, of in parts for alias, share in of.items()]


def aliases(version: Version) -> str:
    """Aliases but `latest`, which each version of a list has, and if it is pinned or expires."""
    names = [alias for alias in version.aliases if alias != "latest"]
    pinned = ["(pinned)"] if version.pinned else []
    until = [f"(until {version.expires[:16]} UTC)"] if version.expires else []
    return ", ".join([*names, *pinned, *until])
