"""Figures of docs/operating/operate.md, from the kept results of the scenarios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/operating/operate.md"
RESULTS = ROOT / "benchmarks" / "results" / "latest" / "operate.json"
BEGIN, END = "<!-- operate figures: `make docs` -->\n", "<!-- end of operate figures -->"
SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def row(entry: dict[str, Any]) -> str:
    """Table row of one measurement, in bold if it is out of its bound."""
    value = f"{entry['value']:,.4g}" if entry["value"] < 10_000 else f"{entry['value']:,.0f}"
    side, _, limit = entry["bound"].partition(" ")
    holds = (
        not side
        or {
            "<=": entry["value"] <= float(limit or 0),
            ">=": entry["value"] >= float(limit or 0),
            "==": entry["value"] == float(limit or 0),
        }[side]
    )
    measured = f"{value} {entry['unit']}" if holds else f"**{value} {entry['unit']}**"
    scale = "" if entry["scale"] == 1 else f" (scale {entry['scale']:g})"
    note = f"; {entry['note']}" if entry.get("note") else ""
    bound = f"{SIGNS[side]} {limit}" if side else ""
    return f"| `{entry['id']}` | {measured} | {bound} | {entry['size']}{note}{scale} |"


def filled(text: str) -> str:
    """The page with the table between its marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["", "| measurement | value | bound | workload |", "|---|---|---|---|"]
    lines += [row(entry) for entry in json.loads(RESULTS.read_text())]
    return before + BEGIN + "\n".join([*lines, "", END]) + after


def pages() -> dict[Path, str | None]:
    return {PAGE: filled(PAGE.read_text())}
