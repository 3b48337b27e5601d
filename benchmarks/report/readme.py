"""The README's table of figures, from the latest results; `make docs` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report.page import figure, table
from benchmarks.report.results import REACH

BEGIN, END = "<!-- benchmarks: `make docs` -->", "<!-- end of benchmarks -->"


def rows(latest: Path) -> list[tuple[str, ...]]:
    """One row a figure that is to reach something: what, value, reach, baseline."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(latest.glob("*.json")):
        entries |= {entry["id"]: entry for entry in json.loads(path.read_text())}
    found: list[tuple[str, ...]] = []
    for entry_id, reach in REACH.items():
        entry = entries.get(entry_id)
        value, baseline = "run `make bench`", ""
        if entry is not None:
            unit = "" if entry["unit"].startswith("ratio") else f" {entry['unit']}"
            value = figure(entry["value"]) + unit
            base = entry["baseline"]
            baseline = f"{base['what']}: {figure(base['value'])} {base['unit']}"
        found.append((f"{reach.what} (`{entry_id}`)", value, str(reach), baseline))
    return found


def filled(text: str, latest: Path) -> str:
    """The README's text with the table of the results in `latest` between its two marks.

    Raises ValueError where a mark is missing.
    """
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise ValueError(f"README.md lacks {BEGIN} or, after it, {END}; put both back")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = table(("figure", "measured", "to reach", "baseline of the same run"), rows(latest))
    return "\n".join([before + BEGIN, "", *lines, END + after])
