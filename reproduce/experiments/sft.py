"""SFT runs of recipes: learnt deletions alone, and training on from a mask."""

from __future__ import annotations

import bmt_core

from benchmarks.harness.environment import WORK
from reproduce.experiments.record import Figure, gain, keep, percent
from reproduce.experiments.runs import report, run_recipe


def lean() -> None:
    """Sorting numbers, the demo's task: the lean mask against the full one."""
    report(run_recipe("sft-sort"), "_sft", "make reproduce NAME=sft-lean")


def train_on() -> None:
    """Train a mask on sorting, then on from it; accuracies of both, and the gain."""
    command, name = "make reproduce NAME=sft-sort-on", "sort-first.bmt"
    first = run_recipe("sft-sort", output=name, lean="off")
    more = run_recipe("sft-sort-on", from_mask=str(WORK / "paper" / name))
    before, after = more.read("init"), more.read("mask")
    if more.mask.metadata["from"]["digest"] != first.mask.digest:
        raise SystemExit(f"{name} is not the mask that training went on from")
    figures = []
    for label, score in (("base", more.read("base")), ("first", before), ("after", after)):
        share, (low, high), total = (score[k] for k in ("accuracy", "interval95", "total"))
        print(f"{label:6} {share:6.1%} [{low:.1%}, {high:.1%}], n = {total}")
        figures.append(percent(f"training_on_{label}", share, (low, high), total, command))
    points, interval = gain(before, after)
    figures.append(
        Figure(
            id="training_on_gain_points",
            value=points,
            interval=interval,
            n=after["total"],
            command=command,
        )
    )
    keep(figures)
    back = bmt_core.difference(first.mask, more.mask).zeros
    print(
        f"gain {points:.1f} [{interval[0]:.1f}, {interval[1]:.1f}] points, {first.mask.zeros:,} "
        f"zeros, then {more.mask.zeros:,}: {back:,} weights came back; "
        f"{first.seconds / 60:.1f} and {more.seconds / 60:.1f} minutes"
    )
