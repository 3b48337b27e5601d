"""DPO and KTO on generated answers: scores of held-out ones before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reproduce.experiments.record import Figure, keep, percent
from reproduce.experiments.runs import run_recipe


def train() -> None:
    """Train a mask by pairs; how it, the first mask and the base prefer on held-out pairs."""
    _run("dpo-word-order", "dpo", "prefer the chosen answer", ("margin", "chosen"))


def train_by_labels() -> None:
    """Train a mask by labeled answers; how held-out ones move from the base."""
    _run("kto-word-order", "kto", "moved as labeled", ("gain", "wanted", "unwanted"))


def _run(recipe: str, method: str, right: str, means: Sequence[str]) -> None:
    """Run a recipe; keep the share and the means, in nats, of each score."""
    command = f"make reproduce NAME={recipe}"
    ran = run_recipe(recipe)
    figures = []
    for name in ("base", "init", "mask"):
        score: dict[str, Any] = ran.scores[name]
        share, (low, high), total = (score[k] for k in ("accuracy", "interval95", "total"))
        print(f"{name:5} {share:6.1%} [{low:.1%}, {high:.1%}] {right}, n = {total}")
        figures.append(percent(f"{method}_accuracy_{name}", share, (low, high), total, command))
        for key in means:
            mean, (least, most) = score[key], score[f"{key}_interval95"]
            print(f"      {key} {mean:.3g} [{least:.3g}, {most:.3g}] nats")
            figures.append(
                Figure(
                    id=f"{method}_{key}_nats_{name}",
                    value=mean,
                    interval=(least, most),
                    n=total,
                    command=command,
                )
            )
    keep(figures)
    print(f"{ran.mask.zeros:,} zeros, {ran.seconds / 60:.1f} minutes")
