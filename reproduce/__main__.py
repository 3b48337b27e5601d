"""Reproduce the paper's tables and figures and the project's experiments.

Without a name: list what there is and its state. With one: run what has no result yet, and keep
results and figures under benchmarks/results/latest. An interrupted run resumes; several processes
with one name take different runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_core import BmtError
from bmt_trainer.comparison import queue, runner
from bmt_trainer.comparison.results import kept
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.process import keep_freed_memory

from benchmarks.harness.environment import demo_model
from reproduce import catalog, dry_run, status
from reproduce.catalog import Comparison, Entry, Run
from reproduce.experiments import comparisons

#: What NEXT=1 goes on with if no name is given.
QUEUE = "small"


def main(arguments: Sequence[str] | None = None, display: Display | None = None) -> int:
    """Exit code: 1 if something that was asked for could not run."""
    parser = argparse.ArgumentParser(prog="python -m reproduce", description=__doc__)
    parser.add_argument("name", nargs="?", help="an entry, or the beginning of several: small")
    parser.add_argument("--next", action="store_true", help="stop after one run of a comparison")
    parser.add_argument("--dry-run", action="store_true", help="a step of each row, tiny models")
    parser.add_argument("--seeds", help="comma-separated seeds instead of the file's")
    parser.add_argument("--data", type=Path, help="folder of data; default: $PAPER_DATA, or data")
    parser.add_argument("--output", type=Path, help="folder of results instead of the file's")
    options = parser.parse_args(arguments)
    display = display or Display()
    data = options.data or Path(os.environ.get("PAPER_DATA") or catalog.DATA)
    try:
        known = catalog.entries()
        if options.name is None and not options.next:
            if options.dry_run or options.seeds or options.output:
                raise ConfigError("--dry-run, --seeds and --output need a name")
            status.show(known, data, display)
            return 0
        chosen = catalog.select(known, options.name or QUEUE)
        changes = _changes(options, chosen)
        if options.dry_run:
            if changes:
                raise ConfigError("a dry run takes neither --seeds nor --output")
            return _dry(chosen, display)
        keep_freed_memory()
        return (_next if options.next else _all)(chosen, data, changes, display)
    except (TrainerError, BmtError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _changes(options: argparse.Namespace, chosen: Sequence[Entry]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if options.seeds:
        try:
            changes["seeds"] = [int(seed) for seed in options.seeds.split(",")]
        except ValueError:
            raise ConfigError(f"--seeds {options.seeds}: write integers, as 0,1,2") from None
    if options.output:
        changes["output"] = options.output.resolve()
    if changes and (runs := [entry.name for entry in chosen if isinstance(entry, Run)]):
        raise ConfigError(f"{', '.join(runs)}: a single run takes neither --seeds nor --output")
    return changes


def _ready(
    chosen: Sequence[Entry], data: Path, changes: Mapping[str, Any], display: Display
) -> list[Entry]:
    """The entries that can run here; says what the others miss, and what fits badly."""
    ready = []
    for entry in chosen:
        state = status.of(entry, data, changes)
        for text in state.missing:
            display.say(f"{entry.name} is left out: missing {text}")
        if not state.missing:
            for text in state.notes:
                display.say(f"{entry.name}: {text}")
            ready.append(entry)
    return ready


def _all(chosen: Sequence[Entry], data: Path, changes: Mapping[str, Any], display: Display) -> int:
    ready = _ready(chosen, data, changes, display)
    for entry in ready:
        if isinstance(entry, Run):
            if len(chosen) > 1 and status.of(entry, data).finished:
                display.say(f"{entry.name} is done; NAME={entry.name} repeats it")
                continue
            os.environ["PAPER_DATA"] = str(data)
            entry.load()()
        elif isinstance(entry, Comparison):
            _kept(entry, runner.run(_plan(entry, data, changes), display), changes)
    return int(len(ready) < len(chosen))


def _next(chosen: Sequence[Entry], data: Path, changes: Mapping[str, Any], display: Display) -> int:
    ready = [e for e in _ready(chosen, data, changes, display) if isinstance(e, Comparison)]
    if not ready:
        raise ConfigError("--next goes on with comparisons, and none of them can run here")
    plans = [_plan(entry, data, changes) for entry in ready]
    cell = queue.run_next(plans, display)
    if cell is None:
        display.say("nothing left to run, but for what other processes work on")
        return 0
    display.say(f"kept {cell.file}")
    [(entry, plan)] = [(e, p) for e, p in zip(ready, plans, strict=True) if p is cell.plan]
    results = [kept.result(one) for one in plan.cells()]
    there = [r for r in results if r is not None]
    if len(there) == len(results):
        _kept(entry, there, changes)
    elif "output" not in changes:
        comparisons.keep_so_far(entry.name, there)
    return 0


def _kept(
    entry: Comparison, results: Sequence[Mapping[str, Any]], changes: Mapping[str, Any]
) -> None:
    """Keep a finished comparison's figures, unless its results went elsewhere."""
    if "output" not in changes:
        comparisons.finish(entry.name, [dict(result) for result in results])


def _plan(entry: Comparison, data: Path, changes: Mapping[str, Any]) -> Any:
    if entry.file.stem == QUEUE:
        demo_model()  # made at its first use
    return entry.plan(changes, data)


def _dry(chosen: Sequence[Entry], display: Display) -> int:
    failed = 0
    for entry in chosen:
        if isinstance(entry, Run):
            entry.load()
            display.say(f"{entry.name}: {entry.function} is there; a single run has no dry run")
            continue
        assert isinstance(entry, Comparison)
        with tempfile.TemporaryDirectory() as folder:
            for label, error in dry_run.rows(entry, Path(folder), display):
                display.say(f"{label}: {'ok' if error is None else error}")
                failed += error is not None
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
