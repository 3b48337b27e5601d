"""Results of a part as they are kept: the short list, the raw samples, content of the page.

results/latest/PART.json       [{"id", "value", "unit", "baseline", "command"}, …]
results/latest/raw/PART.json   by section: every sample, the environment, tables and plots' data
results/latest/README.md       the page, made of all the raw files there
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT, WORK
from benchmarks.harness.stats import Estimate

LATEST = ROOT / "benchmarks" / "results" / "latest"
# A quick run's figures are not evidence, so they do not replace those that are.
QUICK = WORK / "quick"


@dataclass(frozen=True, slots=True)
class Reach:
    """Target of a figure: the good side, the bound and a description."""

    side: str
    bound: float
    what: str

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.side == "≥" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.side} {self.bound:.4g}"


REACH = {
    "base_over_base_half_width": Reach(
        "≤", 0.015, "what the method leaves open: half the interval of bare vLLM over itself"
    ),
    "idle_over_base": Reach("≥", 0.995, "mask support on, base requests only, over bare vLLM"),
    "single_over_base": Reach("≥", 0.985, "32 sequences, one mask: tokens/s over bare vLLM"),
    "mixed32_over_base": Reach("≥", 0.97, "32 sequences, a mask each: tokens/s over bare vLLM"),
    "mixed32_over_base_sft_density": Reach("≥", 0.95, "the same with 0.45 % zeros a mask"),
    "prefill_over_base": Reach("≥", 0.95, "prefill of 2,048 tokens, one mask, over bare vLLM"),
    "idle_over_base_http": Reach("≥", 0.99, "base requests over HTTP, over bare vLLM's server"),
    "single_over_base_http": Reach("≥", 0.98, "one mask over HTTP, over bare vLLM's server"),
    "mixed32_over_base_http": Reach("≥", 0.97, "32 masks over HTTP, over bare vLLM's server"),
    "uniform1000_over_single": Reach("≥", 0.98, "1,000 masks over HTTP, over one mask"),
    "warm_start_over_base_http": Reach(
        "≤", 1.1, "warm start to the first answer, over bare vLLM's server"
    ),
    "cold_p99_ttft_ratio": Reach(
        "≤", 1.1, "p99 first token of running masks while 100 cold ones arrive, over without"
    ),
    "cold_first_token_extra_ms": Reach("≤", 50.0, "first token of a cold mask, over a warm one"),
    "switch_over_lora_merge": Reach(
        "≤", 1 / 50, "another mask in place, 8B gates, over peft's merge of a LoRA r=16"
    ),
    "switch_over_addmm": Reach("≤", 0.1, "another mask in place, over one addmm of its LoRA"),
    "bytes_per_zero": Reach("≤", 4.5, "memory of a resident mask, 8B shape, bf16"),
    "open_8b_ms": Reach("≤", 30.0, "read, verify and decode an 8B model's mask"),
    "size_over_entropy": Reach("≤", 1.035, "its file over the entropy bound"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Baseline of a figure, measured in the same run."""

    what: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One figure. interval: 95 %, where one was taken; note: a short remark for the page."""

    id: str
    value: float
    unit: str
    baseline: Baseline
    command: str
    interval: tuple[float, float] | None = None
    note: str = ""

    @classmethod
    def estimated(
        cls,
        id: str,
        found: Estimate,
        unit: str,
        baseline: Baseline,
        command: str,
        *,
        note: str = "",
        digits: int = 4,
    ) -> Entry:
        """The entry of an estimate, with its interval, to so many digits after the point."""
        return cls(
            id=id,
            value=round(found.value, digits),
            unit=unit,
            baseline=baseline,
            command=command,
            interval=(round(found.low, digits), round(found.high, digits)),
            note=note,
        )

    def short(self) -> dict[str, Any]:
        """The five keys of PART.json."""
        return {
            "id": self.id,
            "value": self.value,
            "unit": self.unit,
            "baseline": asdict(self.baseline),
            "command": self.command,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of the page; cells are text already."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a plot: x and y of equal length."""

    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One plot: labels carry units; log: the axes that are logarithmic, of "xy"."""

    file: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log: str = ""


@dataclass(slots=True)
class Findings:
    """Findings of one section. samples: raw values, JSON."""

    entries: list[Entry] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)


def verdict(entry_id: str, value: float) -> str:
    """`yes` or `no` against REACH, empty where nothing is to be reached."""
    if entry_id not in REACH:
        return ""
    return "yes" if REACH[entry_id].holds(value) else "no"


def folder(quick: bool) -> Path:
    """Folder of the results of this kind of run."""
    return QUICK if quick else LATEST


def read_raw(path: Path) -> dict[str, Any]:
    """A part's raw file; empty where there is none that can be read."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def keep(part: str, sections: dict[str, dict[str, Any]], target: Path) -> None:
    """Write a part's two files. Sections that did not run this time stay as they were."""
    path = target / "raw" / f"{part}.json"
    kept = read_raw(path).get("sections", {})
    kept.update(sections)
    write_json(path, {"part": part, "sections": kept})
    short = [
        {k: entry[k] for k in ("id", "value", "unit", "baseline", "command")}
        for section in kept.values()
        for entry in section["entries"]
    ]
    write_json(target / f"{part}.json", short)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
