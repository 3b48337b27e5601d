"""Tables of figures on README and the page of results, from the latest results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.page import figure, table
from benchmarks.report.results import REACH

BEGIN, END = "<!-- benchmarks: `make docs` -->", "<!-- end of benchmarks -->"


#: Figures on README; the page of results has all.
SHORT = (
    *("mixed32_over_base", "mixed32_over_base_http", "uniform1000_over_single"),
    *("cold_first_token_extra_ms", "switch_over_lora_merge"),
)


def rows(latest: Path, ids: Sequence[str] = tuple(REACH)) -> list[tuple[str, ...]]:
    """One row a figure that is to reach something: what, value, reach, baseline."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(latest.glob("*.json")):
        entries |= {entry["id"]: entry for entry in json.loads(path.read_text())}
    found: list[tuple[str, ...]] = []
    for entry_id in ids:
        reach = REACH[entry_id]
        entry = entries.get(entry_id)
        value, baseline = "run `make bench`", ""
        if entry is not None:
            unit = "" if entry["unit"].startswith("ratio") else f" {entry['unit']}"
            value = figure(entry["value"]) + unit
            base = entry["baseline"]
            baseline = f"{base['what']}: {figure(base['value'])} {base['unit']}"
        found.append((f"{reach.what} (`{entry_id}`)", value, str(reach), baseline))
    return found


def filled(text: str, latest: Path, ids: Sequence[str] = tuple(REACH)) -> str:
    """A page's text with the table of the results in `latest` between its two marks.

    Raises ValueError if a mark is missing.
    """
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise ValueError(f"the page lacks {BEGIN} or, after it, {END}; put both back")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = table(("figure", "measured", "to reach", "baseline of the same run"), rows(latest, ids))
    return "\n".join([before + BEGIN, "", *lines, END + after])
