"""Dry runs: one optimizer step of each row of a comparison on a tiny model, in a folder of its own.

Everything else is the row's: method, trainer, loss, measurements and the reading of data in the
form of its data set. Of a sweep, each value is tried, but not each combination.
"""

from __future__ import annotations

import gc
import io
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bmt_trainer.comparison import recipe
from bmt_trainer.comparison.plan import Cell, Plan
from bmt_trainer.comparison.provenance import DATASETS
from bmt_trainer.comparison.runner import run_and_keep
from bmt_trainer.console import Display
from rich.console import Console

from reproduce import tiny
from reproduce.catalog import Comparison

_SETTINGS: dict[str, Any] = {
    **{"steps": 1, "max_new_tokens": 4, "calibration_prompts": 4, "eval_batch_size": 8},
    **{"device": "cpu", "max_length": 2048, "checkpoint_every": 0, "seeds": [0]},
}
_BY_TRAINER: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 2},
    "grpo": {"prompts_per_step": 2, "micro_batch": 2, "completions": 2},
    "sdft": {"prompts_per_step": 2, "micro_batch": 2, "skip_tokens": 0},
}


def rows(entry: Comparison, folder: Path, display: Display) -> Iterator[tuple[str, str | None]]:
    """Run each row; yields its label and None, or the trace of what went wrong.

    display: for what a dry run leaves out; the rows' own lines are not shown.
    """
    plan = entry.plan(_changes(entry, folder, display))
    plan.output.mkdir(parents=True)
    # The trainer collects garbage at the end of each training: most of a tiny run's time, if all
    # that is imported is searched.
    gc.freeze()
    try:
        for label, cell in _cells(entry.name, plan):
            try:
                run_and_keep(cell, Display(Console(file=io.StringIO())))
            except Exception:  # the other rows are still worth a try
                yield label, traceback.format_exc()
            else:
                yield label, None
    finally:
        gc.unfreeze()


def _cells(name: str, plan: Plan) -> Iterator[tuple[str, Cell]]:
    """The plan's runs with their labels, without combinations of values already tried."""
    tried: set[tuple[str, str]] = set()
    for cell in plan.cells():
        values = {(cell.method, f"{key}={value}") for key, value in cell.changes.items()}
        if values and values <= tried:
            continue
        tried |= values
        yield " ".join([name, cell.method, *(text for _, text in sorted(values))]), cell


def _changes(entry: Comparison, folder: Path, display: Display) -> dict[str, Any]:
    """Settings that make the comparison tiny. Raises ConfigError."""
    own = recipe.settings(entry.file, entry.name)
    changes = {**_SETTINGS, **_BY_TRAINER[own["trainer"]], "output": folder / "results"}
    families = dict.fromkeys(map(tiny.family, own["models"]))
    changes["models"] = [str(tiny.checkpoint(one, folder / one)) for one in families]
    changes["datasets"] = [tiny.dataset(own["datasets"][0], folder)]
    for name in set(DATASETS) & own.keys():
        changes[name] = tiny.dataset(own[name], folder)
    if own.get("heldout"):
        changes["heldout"] = 2
    if "train_examples" in own:
        changes["train_examples"] = 8
    if own.get("eta") == 0:
        # Nothing may start as deleted, and no mask deletes nothing: the one step must.
        changes["learning_rate"] = 1.0
    if own.get("track_every"):
        changes |= {"track_every": 1, "retention_examples": 2}
    if own.get("retention") == "lm-eval":
        display.say(f"{entry.name}: a generated task in the place of lm-eval, which needs the Hub")
        changes["retention"] = "task:reverse-words"
    if own.get("suites"):
        display.say(f"{entry.name}: the evaluation sets are skipped")
        changes["suites_data"] = folder
    if own.get("reward") == "math" and find_spec("math_verify") is None:
        display.say(f"{entry.name}: answers graded as numbers, for math-verify is not installed")
        changes["reward"] = "number"
    return changes
