"""DPO on generated pairs: margins and accuracies of held-out ones before and after."""

from __future__ import annotations

from reproduce.experiments.record import Figure, keep, percent
from reproduce.experiments.runs import run_recipe

RECIPE = "dpo-word-order"
COMMAND = "make reproduce NAME=dpo-word-order"


def train() -> None:
    """Train the mask; how it, the first mask and the base prefer on held-out pairs."""
    ran = run_recipe(RECIPE)
    figures = []
    for name in ("base", "init", "mask"):
        score = ran.scores[name]
        share, (low, high), total = (score[k] for k in ("accuracy", "interval95", "total"))
        margin, (least, most) = score["margin"], score["margin_interval95"]
        print(
            f"{name:5} {share:6.1%} [{low:.1%}, {high:.1%}] prefer the chosen answer, margin "
            f"{margin:.3g} [{least:.3g}, {most:.3g}] nats, n = {total}"
        )
        figures.append(percent(f"dpo_accuracy_{name}", share, (low, high), total, COMMAND))
        figures.append(
            Figure(
                id=f"dpo_margin_nats_{name}",
                value=margin,
                interval=(least, most),
                n=total,
                command=COMMAND,
            )
        )
    keep(figures)
    print(f"{ran.mask.zeros:,} zeros, {ran.seconds / 60:.1f} minutes")
