"""Tables of comparisons: means over data sets and runs, intervals and sizes (paper, Table 1).

One run has Wilson's interval of its held-out sample, and McNemar's test against the base. Runs of
several seeds differ by more than that: their mean has Student's interval over the runs, and two
methods are compared by the differences of each seed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qsl

from bmt_trainer.comparison.adapter_sizes import MIB
from bmt_trainer.comparison.results import files, groups
from bmt_trainer.evaluation.intervals import (
    OverRuns,
    Paired,
    differ,
    mean_interval,
    over_runs,
    paired,
    student,
)

Result = Mapping[str, Any]

_ORDER = ("base", "wanda", "full", "lora", "tinylora", "mth", "bmt")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method with its settings on one model, over all its data sets and seeds.

    accuracy: unweighted mean over the data sets, 0 to 1, and then over the seeds; interval: its
    95 % interval, over the runs if there are several seeds; by_seed: the accuracy of each; total:
    answers of one seed; against: comparison with the base on the same examples. All are None or
    empty without held-out examples, `against` also without a base on all of them.
    """

    model: str
    method: str
    changes: str
    datasets: int
    accuracy: float | None
    interval: tuple[float, float] | None
    by_seed: Mapping[int, float]
    total: int
    against: Paired | OverRuns | None
    size: float  # MiB by appendix B, mean over data sets
    disk: float | None  # MiB of the .bmt file
    results: Sequence[Result]

    @property
    def label(self) -> str:
        """The method, and in what its row differs from others."""
        return f"{self.method} {self.changes}".strip()

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        accuracy = interval = difference = p = "-"
        if self.accuracy is not None and self.interval is not None:
            accuracy, interval = f"{100 * self.accuracy:.2f}", _range(self.interval)
        if self.against is not None:
            difference, p = f"{100 * self.against.difference:+.1f}", _p(self.against.p_value)
        disk = "-" if self.disk is None else _mib(self.disk)
        counts = (str(self.datasets), str(max(1, len(self.by_seed))), str(self.total))
        size = _mib(self.size)
        return (self.model, self.label, accuracy, interval, difference, p, size, disk, *counts)


HEADER = (
    *("model", "method", "accuracy, %", "95 %", "against base, points", "p"),
    *("size, MiB", "on disk, MiB", "data sets", "runs", "n of a run"),
)
#: Columns of `differences`.
DIFFERENCES = ("model", "method", "minus", "points", "95 %", "p", "runs")


def read(paths: Sequence[Path], say: Callable[[str], None] = lambda text: None) -> list[Result]:
    """Read results from files and from all files of folders, as `results.files.read_all`."""
    return list(files.read_all(paths, say))


def rows(results: Sequence[Result]) -> list[Row]:
    """Rows by model, method and settings, in the order of the paper's tables.

    Results are in one row if all but data and seed is equal; rows of one name say what differs.
    """
    several = len({result["trainer"] for result in results}) > 1
    ordered = sorted(
        results, key=lambda r: (r["model"], _method_order(r["method"]), groups.seed(r))
    )
    found = groups.rows(ordered)
    bases = [result for result in results if result["method"] == "base"]
    members_of: dict[tuple[str, str, str], list[int]] = {}
    for at, group in enumerate(found):
        label = (_model(group[0], several), group[0]["method"], _changes(group))
        members_of.setdefault(label, []).append(at)
    made: dict[int, Row] = {}
    for (model, method, changed), members in members_of.items():
        texts = groups.differing([found[at] for at in members]) if len(members) > 1 else [""]
        for at, text in zip(members, texts, strict=True):
            own = ", ".join(filter(None, (changed, text)))
            made[at] = _row((model, method, own), found[at], bases)
    return [made[at] for at in range(len(found))]


def differences(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Each mask's row minus each other method's of the model, by the seeds that both have.

    As text, in the order of DIFFERENCES; without rows of several seeds, empty.
    """
    made: list[tuple[str, ...]] = []
    for mask in (row for row in rows if row.method.partition("@")[0] == "bmt"):
        for other in rows:
            seeds = sorted(mask.by_seed.keys() & other.by_seed.keys())
            if other is mask or other.model != mask.model or len(seeds) < 2:
                continue
            if _examples(mask, seeds) != _examples(other, seeds):
                continue
            over = over_runs([mask.by_seed[s] - other.by_seed[s] for s in seeds])
            shown = f"{100 * over.difference:+.1f}"
            low, high = over.interval
            bounds = f"{100 * low:+.1f} to {100 * high:+.1f}"
            if math.isnan(over.p_value):  # equal differences have no spread to estimate it from
                bounds = "-"
            made.append(
                (
                    mask.model,
                    mask.label,
                    other.label,
                    shown,
                    bounds,
                    _p(over.p_value),
                    str(over.runs),
                )
            )
    return made


def _examples(row: Row, seeds: Sequence[int]) -> set[Hashable]:
    return {groups.examples(r) for r in row.results if groups.seed(r) in seeds}


def _model(result: Result, several: bool) -> str:
    return f"{result['model']}, {result['trainer']}" if several else str(result["model"])


def _changes(group: Sequence[Result]) -> str:
    """The settings that a sweep changed, and the seed of a row of one seed, unless it is 0."""
    first = group[0]
    if len(set(map(groups.seed, group))) == 1:
        return changes(first)
    return changes({**first, "settings": {}})


def changes(result: Result) -> str:
    """The settings that a sweep changed, and the seed unless it is 0, as text."""
    settings = dict(result.get("changes", {}))
    if seed := groups.seed(result):
        settings["seed"] = seed
    return ", ".join(f"{k} {_short(v)}" for k, v in settings.items())


def named(result: Result) -> str:
    """The label that `labeled` gave it, or the method and the settings that a sweep changed."""
    return str(result.get("label") or f"{result['method']} {changes(result)}".strip())


def labeled(rows: Sequence[Row]) -> list[Result]:
    """The results of rows, each with a label that no result of another row or seed has."""
    made: list[Result] = []
    for row in rows:
        several = len(set(map(groups.seed, row.results))) > 1
        for result in row.results:
            seed = f", seed {groups.seed(result)}" if several and groups.seed(result) else ""
            made.append({**result, "label": f"{row.label}{seed}"})
    return made


def labels(results: Sequence[Result]) -> dict[Hashable, str]:
    """A label of each data set, by `groups.data`; those of one name have their digests in it."""
    names: dict[Hashable, str] = {groups.data(r): short(r["dataset"]) for r in results}
    twice = Counter(names.values())
    return {
        key: name if twice[name] == 1 else f"{name} {_digest(key)}" for key, name in names.items()
    }


def _digest(key: Hashable) -> str:
    """The first digits of a data set's digest, by which two of one name differ."""
    return hashlib.sha256(str(key).encode()).hexdigest()[:6]


def short(dataset: str) -> str:
    """A data set's label: its form, its file without folder or its task, and its options."""
    path, _, query = dataset.partition("?")
    form, _, rest = path.rpartition(":")
    name = re.sub(r"(\.jsonl?)?(\.gz)?$", "", PurePath(rest).name).removeprefix(f"{form}_")
    options = dict(parse_qsl(query))
    parts = [form] if form not in ("", "task", "reasoning-gym") else []
    parts.append(options.pop("subject", name))
    return " ".join([*parts, *(f"{key}={value}" for key, value in options.items())])


def _row(key: tuple[str, str, str], group: Sequence[Result], bases: Sequence[Result]) -> Row:
    scored = [r for r in group if r.get("score")]
    by_seed: dict[int, list[Result]] = {}
    for result in scored:
        by_seed.setdefault(groups.seed(result), []).append(result)
    shares = {seed: _mean(runs) for seed, runs in by_seed.items()}
    counts = [_count(result) for result in scored]
    interval = None
    if counts:
        # Equal accuracies have no spread to estimate an interval from: that of one run's answers,
        # because the runs may have answered the same examples.
        of_one = [_count(result) for result in next(iter(by_seed.values()))]
        values = list(shares.values())
        low, high = student(values) if differ(values) else mean_interval(of_one)
        interval = (max(0.0, low), min(1.0, high))
    disks = [r["disk_bytes"] for r in group if "disk_bytes" in r]
    return Row(
        model=key[0],
        method=key[1],
        changes=key[2],
        datasets=len({groups.data(result) for result in group}),
        accuracy=math.fsum(shares.values()) / len(shares) if shares else None,
        interval=interval,
        by_seed=shares,
        total=sum(n for _, n in counts) // max(1, len(shares)),
        against=_against(by_seed, bases),
        size=sum(r["size_bytes"] for r in group) / len(group) / MIB,
        disk=sum(disks) / len(disks) / MIB if disks else None,
        results=group,
    )


def _against(
    by_seed: Mapping[int, Sequence[Result]], bases: Sequence[Result]
) -> Paired | OverRuns | None:
    """Comparison with the base, if it answered the same examples of each data set and seed."""
    pairs = {
        seed: [(groups.base_of(result, bases), result) for result in runs]
        for seed, runs in by_seed.items()
    }
    if not pairs or any(base is None for runs in pairs.values() for base, _ in runs):
        return None
    if len(pairs) > 1:
        return over_runs(
            [
                _mean([r for _, r in runs]) - _mean([b for b, _ in runs if b is not None])
                for runs in pairs.values()
            ]
        )
    [runs] = pairs.values()
    found = [paired(_right(base), _right(result)) for base, result in runs if base is not None]
    return Paired(
        gained=sum(p.gained for p in found),
        lost=sum(p.lost for p in found),
        total=sum(p.total for p in found),
    )


def _count(result: Result) -> tuple[int, int]:
    return result["right"].count("1"), len(result["right"])


def _mean(runs: Sequence[Result]) -> float:
    """Unweighted mean accuracy over the data sets of one seed."""
    return math.fsum(right / total for right, total in map(_count, runs)) / len(runs)


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _mib(size: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if size == 0 else max(0, 2 - math.floor(math.log10(size)))
    text = f"{size:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"


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
