"""Rows of JSON lines, JSON, CSV and plain text, with every value as it is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from bmt_core import RowError
from bmt_core.fine_tuning import json_text

from bmt_trainer.data.rows import Rows
from bmt_trainer.errors import DataError

# A cell of a CSV file, in characters: Python's own limit of 131,072 is below a long document.
_LONGEST_CELL = 1 << 30
# Lists of objects that a single row may hold: an object with one of these is a row itself.
_ROW_LISTS = ("messages", "conversations", "prompt", "completion", "tools", "chosen", "rejected")

Lines = Iterable[tuple[int, str]]


def json_lines(lines: Lines, name: str) -> Rows:
    """One JSON value a line; blank lines are skipped. Raises DataError."""
    for number, line in lines:
        if line.strip():
            yield f"{name}, line {number}", parse_json(line, f"{name}, line {number}")


def json_entries(lines: Lines, name: str, field: str | None = None) -> Rows:
    """The entries of a JSON list, or of the only list of objects in a JSON object.

    field: the list's key. A file that holds a JSON value on each line is read as JSON lines.
    Raises DataError.
    """
    kept = list(lines)
    text = "".join(line for _, line in kept)
    if not text.strip():
        return
    try:
        json.loads(text)
    except ValueError as error:
        # JSON lines: the first line alone is whole.
        if str(error).startswith("Extra data") and error.lineno > 1:  # type: ignore[attr-defined]
            yield from json_lines(kept, name)
            return
    except RecursionError:
        pass
    value = parse_json(text, name)
    if isinstance(value, dict):
        value = _rows_of(value, name, field)
    if not isinstance(value, list):
        raise DataError(f"{name} holds neither a list nor an object with a list of rows")
    for number, entry in enumerate(value, 1):
        yield f"{name}, entry {number}", entry


def _rows_of(value: dict[str, Any], name: str, field: str | None) -> Any:
    if field is not None:
        if field not in value:
            raise DataError(f"{name} has no {field!r}; its keys are {', '.join(value)}")
        return value[field]
    lists = [k for k, v in value.items() if isinstance(v, list) and _objects(v)]
    if any(key in _ROW_LISTS for key in value):
        return [value]
    if len(lists) > 1:
        raise DataError(
            f"{name} holds several lists of objects ({', '.join(lists)}); choose one by "
            f"?field={lists[0]}"
        )
    if not lists:
        raise DataError(
            f"{name} holds neither a list nor an object with a list of objects; its keys are "
            f"{', '.join(list(value)[:10]) or 'none'}"
        )
    return value[lists[0]]


def _objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def parse_json(text: str, location: str) -> Any:
    """The JSON value of `text`. A key given twice, NaN and Infinity raise DataError."""
    try:
        return json_text.parse_json(text, location)
    except RowError as error:
        raise DataError(str(error)) from None


def csv_rows(lines: Lines, name: str, delimiter: str) -> Rows:
    """Rows of a CSV file by the names of its header; all values are text. Raises DataError."""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise DataError(
            f"{name}: delimiter: {delimiter!r} is not one character; a tab is written %09"
        )
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    for location, cells in _csv_lines(reader, name):
        if not cells:
            continue
        if header is None:
            header = _header(cells, location, delimiter)
        elif len(cells) != len(header):
            raise DataError(
                f"{location}: {len(cells)} cells, and the header has {len(header)} "
                f"({', '.join(header)}); quote cells that hold {delimiter!r} or a line break"
            )
        else:
            yield location, dict(zip(header, cells, strict=True))


# The reader's words, which name an option of Python's `open`.
_LONE_RETURN = (
    "new-line character seen in unquoted field - do you need to open the file in "
    "universal-newline mode?"
)


def _csv_lines(reader: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row, with its first line as location."""
    while True:
        location = f"{name}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            why = str(error).replace(_LONE_RETURN, "a line ends with \\r alone; convert it to \\n")
            raise DataError(f"{location}: not CSV ({why})") from None
        if cells is None:
            return
        yield location, cells


def _header(cells: list[str], location: str, delimiter: str) -> list[str]:
    twice = [cell for cell in cells if cells.count(cell) > 1]
    if twice:
        raise DataError(f"{location}: the column {twice[0]!r} is in the header twice")
    blank = [cell for cell in cells if cell.strip() != cell]
    if blank:
        raise DataError(
            f"{location}: the column {blank[0]!r} has white space around its name; remove it"
        )
    if len(cells) == 1:
        for other in (";", "\t", ",", "|"):
            if other != delimiter and other in cells[0]:
                text = "%09" if other == "\t" else other
                raise DataError(
                    f"{location}: one column {cells[0]!r}; if {other!r} separates the columns, "
                    f"add ?delimiter={text}"
                )
    return cells


def text_rows(lines: Lines, name: str) -> Rows:
    """One `text` row a line, without its end; blank lines are skipped."""
    for number, line in lines:
        if line.strip():
            yield f"{name}, line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}
