"""Tables of comparisons: means over data sets, intervals and sizes (paper, Table 1)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qsl

from bmt_trainer.comparison.adapter_sizes import MIB
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.intervals import Paired, mean_interval, paired

Result = Mapping[str, Any]

_ORDER = ("base", "wanda", "full", "lora", "mth", "bmt")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method with its settings on one model, over all its data sets.

    accuracy, interval: unweighted mean over the data sets, 0 to 1; against: paired comparison with
    the base on the same examples, all data sets together. All three are None without a base or
    held-out examples.
    """

    model: str
    method: str
    changes: str
    datasets: int
    accuracy: float | None
    interval: tuple[float, float] | None
    total: int
    against: Paired | None
    size: float  # MiB by appendix B, mean over data sets
    disk: float | None  # MiB of the .bmt file
    results: Sequence[Result]

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        accuracy = interval = p = "-"
        if self.accuracy is not None and self.interval is not None:
            low, high = self.interval
            accuracy, interval = (
                f"{100 * self.accuracy:.2f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
            )
        if self.against is not None:
            p = f"{self.against.p_value:.2g}"
        method = self.method + (f" {self.changes}" if self.changes else "")
        disk = "-" if self.disk is None else f"{self.disk:.3g}"
        counts = (str(self.datasets), str(self.total))
        return (self.model, method, accuracy, interval, p, f"{self.size:.3g}", disk, *counts)


HEADER = (
    *("model", "method", "accuracy, %", "95 %", "p against base"),
    *("size, MiB", "on disk, MiB", "data sets", "n"),
)


def read(paths: Sequence[Path]) -> list[Result]:
    """Read results from files and from all files of folders. Raises DataError."""
    results: list[Result] = []
    for given in paths:
        files = sorted(given.glob("*.json")) if given.is_dir() else [given]
        for path in files:
            if path.name.endswith(".history.json"):
                continue
            try:
                value = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read ({error})") from None
            if isinstance(value, dict) and {"method", "model", "dataset"} <= value.keys():
                results.append(value)
    if not results:
        raise DataError(
            f"no results in {', '.join(map(str, paths))}; bmt-train compare writes them"
        )
    return results


def rows(results: Sequence[Result]) -> list[Row]:
    """Rows by model, method and settings, in the order of the paper's tables."""
    several = len({result["trainer"] for result in results}) > 1
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (r["model"], _method_order(r["method"]), _seed(r))):
        key = (_model(result, several), result["method"], changes(result))
        groups.setdefault(key, []).append(result)
    bases = {_examples(r): r for r in results if r["method"] == "base"}
    return [_row(key, group, bases) for key, group in groups.items()]


def _model(result: Result, several: bool) -> str:
    return f"{result['model']}, {result['trainer']}" if several else str(result["model"])


def _examples(result: Result) -> tuple[str, ...]:
    """The properties that a result shares with its base."""
    reading = result.get("reading", "exact")
    return (result["model"], result["trainer"], result["dataset"], reading, str(_seed(result)))


def _seed(result: Result) -> int:
    return int(result.get("settings", {}).get("seed", 0))


def changes(result: Result) -> str:
    """The settings that a sweep changed, and the seed unless it is 0, as text."""
    settings = dict(result.get("changes", {}))
    if seed := _seed(result):
        settings["seed"] = seed
    return ", ".join(f"{k} {_short(v)}" for k, v in settings.items())


def named(result: Result) -> str:
    """The method and the settings that a sweep changed."""
    return f"{result['method']} {changes(result)}".strip()


def short(dataset: str) -> str:
    """A data set's label: its form, its file without folder or its task, and its options."""
    path, _, query = dataset.partition("?")
    form, _, rest = path.rpartition(":")
    name = re.sub(r"(\.jsonl?)?(\.gz)?$", "", PurePath(rest).name).removeprefix(f"{form}_")
    options = dict(parse_qsl(query))
    parts = [form] if form not in ("", "task", "reasoning-gym") else []
    parts.append(options.pop("subject", name))
    return " ".join([*parts, *(f"{key}={value}" for key, value in options.items())])


def _row(
    key: tuple[str, str, str],
    group: Sequence[Result],
    bases: Mapping[tuple[str, ...], Result],
) -> Row:
    scored = [r for r in group if r.get("score")]
    counts = [(r["right"].count("1"), len(r["right"])) for r in scored]
    pairs = []
    for result in scored:
        base = bases.get(_examples(result))
        if key[1] != "base" and base is not None and len(base["right"]) == len(result["right"]):
            pairs.append(paired(_right(base), _right(result)))
    against = None
    if pairs and len(pairs) == len(scored):
        against = Paired(
            gained=sum(p.gained for p in pairs),
            lost=sum(p.lost for p in pairs),
            total=sum(p.total for p in pairs),
        )
    disks = [r["disk_bytes"] for r in group if "disk_bytes" in r]
    return Row(
        model=key[0],
        method=key[1],
        changes=key[2],
        datasets=len(group),
        accuracy=sum(r / n for r, n in counts) / len(counts) if counts else None,
        interval=mean_interval(counts) if counts else None,
        total=sum(n for _, n in counts),
        against=against,
        size=sum(r["size_bytes"] for r in group) / len(group) / MIB,
        disk=sum(disks) / len(disks) / MIB if disks else None,
        results=group,
    )


def _method_order(method: str) -> int:
    kind = method.partition("@")[0].partition("-")[0]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _right(result: Result) -> list[bool]:
    return [one == "1" for one in result["right"]]


def _short(value: Any) -> str:
    """The value as text; the reciprocal of a power of two as 1/2048."""
    if isinstance(value, float) and 0 < value < 0.1 and abs(1 / value - round(1 / value)) < 1e-9:
        inverse = round(1 / value)
        if inverse & (inverse - 1) == 0:
            return f"1/{inverse}"
    return f"{value:g}" if isinstance(value, float) else str(value)
