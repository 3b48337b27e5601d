"""The README's table of benchmark figures, from the latest results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.readme import filled
from benchmarks.report.results import LATEST

README = Path(__file__).resolve().parents[2] / "README.md"


def pages() -> dict[Path, str | None]:
    return {README: filled(README.read_text(), LATEST)}
