"""Figures of a training's steps by the names of OpenAI's events, and the CSV of a job's results."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_trainer.jobs.job import MASK

Metrics = dict[str, float | int]

# Figures of a step, and of a validation: of all rows of the validation file, under the hard mask.
_OF_STEP = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "train_mean_token_accuracy",
    "reward": "train_reward_mean",
    "reward_std": "train_reward_std",
    "closed_gates": "closed_gates",
}
_OF_VALIDATION = {"loss": "full_valid_loss", "mean": "valid_reward_mean"}
_COLUMNS = ("step", *_OF_STEP.values(), *_OF_VALIDATION.values())
#: Rows of the CSV: of a job with more steps, they are evenly apart.
_MAX_ROWS = 50_000


def metrics_of(step: Mapping[str, Any], validations: Sequence[Any] = ()) -> Metrics:
    """The metrics of a step's entry in a run's log, with those of its validation."""
    found: Metrics = {"step": int(step["step"]), **_named(step, _OF_STEP)}
    for one in validations:
        if isinstance(one, Mapping) and one.get("step") == found["step"]:
            found.update(_named(one, _OF_VALIDATION))
    return found


def validations_of(folder: Path) -> list[Any]:
    """The validations so far of the run of a job's folder."""
    for name, path in ((f"{MASK}.run/run.json", ("notes",)), (f"{MASK}.history.json", ())):
        try:
            found = json.loads((folder / name).read_text())
            for key in path:
                found = found[key]
            return list(found.get("validation", []))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return []


def results_of(folder: Path) -> bytes | None:
    """The CSV of each step's metrics of a run that has ended; None without its history."""
    try:
        history = json.loads((folder / f"{MASK}.history.json").read_text())
        steps, validations = history["steps"], history.get("validation", [])
        by_step = {one["step"]: one for one in validations}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    apart = max(1, math.ceil(len(steps) / _MAX_ROWS))
    rows = [
        metrics_of(entry, [by_step[entry["step"]]] if entry["step"] in by_step else [])
        for entry in steps
        if isinstance(entry, Mapping) and isinstance(entry.get("step"), int)
    ]
    return _csv(row for row in rows if row["step"] % apart == 0 or row["step"] == len(steps))


def _csv(rows: Iterable[Metrics]) -> bytes:
    listed = list(rows)
    used = [name for name in _COLUMNS if any(name in row for row in listed)]
    text = io.StringIO()
    writer = csv.DictWriter(text, used or ["step"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue().encode()


def _named(entry: Mapping[str, Any], names: Mapping[str, str]) -> Metrics:
    return {
        ours: entry[name]
        for name, ours in names.items()
        if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
    }
