"""Rows of data files (JSON, JSON lines, gzipped or not) and of Hub data sets.

Each row comes with its location, such as `test.jsonl, line 3`, for error messages.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from bmt_trainer.errors import DataError

#: (location, value) of one row after the other.
Rows = Iterator[tuple[str, Any]]


def of_file(path: Path) -> Rows:
    """The lines of a .jsonl file or the entries of a .json file, each perhaps also .gz.

    A .json file holds a list, or an object with the list under `examples`. Raises DataError.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return _lines(text, path) if ".jsonl" in path.suffixes else _entries(text, path)


def _lines(text: str, path: Path) -> Rows:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", _json(line, f"{path}, line {number}")


def _entries(text: str, path: Path) -> Rows:
    value = _json(text, str(path))
    # BBEH's files hold a canary next to their examples.
    entries = value.get("examples") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError(f"{path} holds neither a list nor `examples`")
    for number, entry in enumerate(entries, 1):
        yield f"{path}, entry {number}", entry


def _json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{location}: not JSON ({error})") from None


def of_hub(name: str, config: str | None, split: str, otherwise: str) -> Rows:
    """The rows of a Hub data set. Raises DataError.

    otherwise: other readings of `name` that the caller has ruled out, for the error message.
    """
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises whatever its readers and its transport raise
        raise DataError(
            f"{name!r} is {otherwise}, and the Hub does not provide it as a data set "
            f"({type(error).__name__}: {error})"
        ) from error
    for number, row in enumerate(rows):
        yield f"{name}, row {number}", row
