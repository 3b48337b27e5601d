"""A queue of comparisons: the recipes, seeds and result folders that are to be run, in order.

A queue is a YAML file with a list of entries::

    - recipe: recipes/small/table3.yaml               a comparison's recipe
      output: benchmarks/results/latest/paper/table3  its folder of results
      data: PAPER_DATA                                optional, see `read`
      seeds: [0, 1, 2]                                any of `Plan`'s or the trainer's settings

Paths are relative to the repository. A run is done if its result's file exists, so an interrupted
queue continues, on another machine too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_trainer.comparison import plan as plans
from bmt_trainer.comparison.plan import Cell, Plan
from bmt_trainer.comparison.runner import locked, read_result, run_and_keep
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError
from bmt_trainer.settings import parse_yaml


def read(path: Path, root: Path, display: Display) -> list[Plan]:
    """The queue's comparisons; root: the folder that its paths are relative to.

    An entry's `data` names an environment variable with the folder of its data sets' files;
    without that variable the entry is left out, with a message. Raises ConfigError.
    """
    try:
        entries = parse_yaml(path.read_text(encoding="utf-8")) or []
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{path} must hold a list of entries")
    read = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"recipe", "output"} <= entry.keys():
            raise ConfigError(f"{path}: {entry!r} must have a recipe and an output")
        variable = entry.get("data")
        if variable is not None and not os.environ.get(variable):
            display.say(f"left out {entry['recipe']}: set {variable} to the folder of its data")
            continue
        read.append(_plan(entry, root))
    return read


def _plan(entry: Mapping[str, Any], root: Path) -> Plan:
    changes = {name: value for name, value in entry.items() if name not in ("recipe", "data")}
    changes["output"] = root / entry["output"]
    if "model" in changes and (root / changes["model"]).is_dir():
        changes["model"] = str(root / changes["model"])
    recipe = root / entry["recipe"]
    if "data" in entry:
        datasets = plans.read(recipe, changes).datasets
        folder = Path(os.environ[entry["data"]])
        changes.pop("dataset", None)
        changes["datasets"] = [within(name, folder) for name in datasets]
    return plans.read(recipe, changes)


def within(dataset: str, folder: Path) -> str:
    """The data set FORM:FILE with its file in `folder`."""
    form, _, file = dataset.partition(":")
    return f"{form}:{folder / file}"


def run_next(queue: Sequence[Plan], display: Display) -> Cell | None:
    """Run, or resume, the first run without a result, and keep its result.

    Returns None if no run is left but those that other processes work on. Processes that call this
    at the same time take different runs.
    """
    for plan in queue:
        plan.output.mkdir(parents=True, exist_ok=True)
        for cell in plan.cells():
            if read_result(cell.file) is not None:
                continue
            with locked(cell.file, wait=False) as ours:
                # Another process may have finished it since.
                if ours and read_result(cell.file) is None:
                    run_and_keep(cell, display)
                    return cell
    return None
