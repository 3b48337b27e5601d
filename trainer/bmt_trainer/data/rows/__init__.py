"""Rows of data files, of folders and of the Hub's data sets, each with its location.

A location, such as `test.jsonl, line 3` or `org/name, row 7`, is for error messages. Lines and
entries count from 1, as editors do, rows of tables from 0, as `datasets` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: (location, value) of one row after the other.
Rows = Iterator[tuple[str, Any]]
