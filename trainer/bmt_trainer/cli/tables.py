"""Tables on standard output."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; cells are plain text, and brackets in them are no markup."""
    table = Table(*header)
    for row in rows:
        table.add_row(*(re.sub(r"([\[\]])", r"\\\1", cell) for cell in row))
    Console().print(table)
