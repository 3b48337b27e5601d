"""Two masks of one base: stacked in one mask, and kept as a common part with the rest of each.

A stack has the deletions of both. The common part has those that both masks have; a server that
keeps it once keeps two small files, and each mask is the union of two of the three.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bmt_core
from bmt_core import Mask
from bmt_trainer.evaluation.intervals import student
from bmt_trainer.methods import sft
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.settings import build

from reproduce.experiments.record import Figure, keep
from reproduce.experiments.runs import begin, scored, settings_of

COMMAND = "make reproduce NAME=pairs"
SEEDS = (0, 1, 2)
TASKS = {
    "sorting": "task:sort-numbers?order=descending",
    "reversal": "task:reverse-words",
}
#: Masks that are scored on each task.
NAMES = ("own", "other", "stack", "common")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The masks of one seed, by task, and their parts."""

    masks: Mapping[str, Mask]

    @property
    def common(self) -> Mask:
        """Deletions that both have."""
        first, second = self.masks.values()
        return _plain(bmt_core.intersection(first, second))

    @property
    def stack(self) -> Mask:
        """Deletions that either has."""
        first, second = self.masks.values()
        return _plain(bmt_core.union(first, second))

    def of_task(self, task: str) -> dict[str, Mask]:
        """The masks to score on a task, by `NAMES`."""
        (other,) = (mask for name, mask in self.masks.items() if name != task)
        parts = (self.masks[task], other, self.stack, self.common)
        return dict(zip(NAMES, parts, strict=True))

    def bytes(self) -> dict[str, float]:
        """Sizes of the files: both masks whole, the common part, what each has besides."""
        common = self.common
        own = [_plain(bmt_core.difference(mask, common)) for mask in self.masks.values()]
        return {
            "whole_kb": sum(_kb(_plain(mask)) for mask in self.masks.values()),
            "common_kb": _kb(common),
            "rest_kb": sum(map(_kb, own)),
        }


def sorting_and_reversal() -> None:
    """Two tasks by SFT on the demo's model, over `SEEDS`."""
    measured = []
    for seed in SEEDS:
        pair = Pair(masks={task: _trained(task, seed) for task in TASKS})
        found = _overlap(pair) | pair.bytes()
        for task in TASKS:
            found |= _scores(task, seed, pair)
        for name, value in found.items():
            print(f"seed {seed}: {name:28} {value:.4g}", flush=True)
        measured.append(found)
    keep(figures(measured))


def figures(measured: Sequence[Mapping[str, float]]) -> list[Figure]:
    """Means over the seeds, with Student's intervals."""
    made = []
    for name in measured[0]:
        values = [found[name] for found in measured]
        made.append(
            Figure(
                id=f"pairs_{name}",
                value=math.fsum(values) / len(values),
                interval=student(values),
                n=len(values),
                command=COMMAND,
                seeds=SEEDS,
            )
        )
    return made


def _settings(task: str, seed: int, suffix: str) -> dict[str, Any]:
    return settings_of(
        "sft-sort",
        f"pairs-{task}-{seed}{suffix}.bmt",
        dataset=TASKS[task],
        seed=seed,
        lean="off",
        checkpoint_every=0,
    )


def _trained(task: str, seed: int) -> Mask:
    settings = _settings(task, seed, "")
    shutil.rmtree(settings["output"].with_name(settings["output"].name + ".run"), True)
    return sft.train(build(SftConfig, settings))


def _scores(task: str, seed: int, pair: Pair) -> dict[str, float]:
    """Right answers to the task's held-out examples in percent, and KL divergences."""
    begun = begin(_settings(task, seed, "-again"))
    loaded = begun.loaded
    found = {f"{task}_base_right": _percent(loaded.run.notes["base"])}
    for name, mask in pair.of_task(task).items():
        score, kl = scored(loaded, begun.attached, name, mask, begun.texts)
        found[f"{task}_{name}_right"] = _percent(score)
        found[f"{task}_{name}_kl"] = kl.per_token
    shutil.rmtree(loaded.run.folder)
    return found


def _overlap(pair: Pair) -> dict[str, float]:
    """Deletions of both masks, and how many times those that chance would give."""
    first, second = pair.masks.values()
    by_chance = first.zeros * second.zeros / first.numel
    return {
        "zeros": (first.zeros + second.zeros) / 2,
        "common_zeros": pair.common.zeros,
        "common_over_chance": pair.common.zeros / by_chance,
    }


def _percent(score: Mapping[str, Any]) -> float:
    return 100 * float(score["exact"]) / float(score["total"])


def _plain(mask: Mask) -> Mask:
    return replace(mask, metadata={})


def _kb(mask: Mask) -> float:
    return len(bmt_core.encode(mask)) / 1000
