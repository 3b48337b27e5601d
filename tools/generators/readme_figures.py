"""Tables of benchmark figures on README and on the page of results, from the latest results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.readme import SHORT, filled
from benchmarks.report.results import LATEST

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "docs/results/index.md"


def pages() -> dict[Path, str | None]:
    return {
        README: filled(README.read_text(), LATEST, SHORT),
        RESULTS: filled(RESULTS.read_text(), LATEST),
    }
