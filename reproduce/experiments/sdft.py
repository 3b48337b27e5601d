"""SDFT: gains of teacher and student over the base, and retention of another skill."""

from __future__ import annotations

from collections.abc import Sequence

import bmt_core
from bmt_core import Mask
from bmt_trainer import models
from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.graders import find
from bmt_trainer.evaluation.intervals import paired
from bmt_trainer.evaluation.score import outcomes
from bmt_trainer.masking.apply import apply

from benchmarks.harness.environment import demo_model
from reproduce.experiments.record import Figure, gain, keep
from reproduce.experiments.runs import Ran, report, run_recipe

COMMAND = "make reproduce NAME=sdft"
# The other skill; so many examples make a change of 3 points significant in a paired test.
KEPT, KEPT_GRADER, KEPT_EXAMPLES = "task:reverse-words?least=2&most=2", "words", 1600


def learns() -> None:
    """Sums from demonstrations; the other skill is to reverse two words."""
    ran = run_recipe("sdft-arithmetic")
    base, teacher = ran.read("base"), ran.read("teacher")
    keep(
        [
            _figure("sdft_teacher_points", *gain(base, teacher), teacher["total"]),
            _figure("sdft_gain_points", *gain(base, ran.read("mask")), base["total"]),
        ]
    )
    report(ran, "_sdft", COMMAND)
    retained(ran)


def retained(ran: Ran) -> None:
    """The other skill before and after on the same examples, by the lenient reading."""
    examples = sources.load(KEPT, heldout=KEPT_EXAMPLES, train=0).heldout
    before, after = (_right(examples, mask) for mask in (None, ran.mask))
    pair = paired(before, after)
    low, high = pair.interval
    points = (100 * pair.difference, (100 * low, 100 * high))
    keep([_figure("sdft_other_skill_points", *points, pair.total)])
    print(
        f"other skill: {sum(before)} before, {sum(after)} after of {pair.total}, "
        f"{points[0]:+.1f} points [{points[1][0]:.1f}, {points[1][1]:.1f}], "
        f"p = {pair.p_value:.2g}"
    )


def _right(examples: Sequence[Example], mask: Mask | None) -> list[bool]:
    folder = demo_model()
    model = models.load_model(folder)
    if mask is not None:
        apply(mask, model, base_fingerprint=bmt_core.fingerprint(folder))
    texts = generate(
        model,
        models.load_tokenizer(folder),
        examples,
        max_new_tokens=16,
        batch_size=100,
    )
    return outcomes(texts, examples, find(KEPT_GRADER), lenient=True)


def _figure(name: str, points: float, interval: tuple[float, float], n: int) -> Figure:
    low, high = interval
    print(f"{name} {points:+.2f} [{low:.2f}, {high:.2f}], n = {n}")
    return Figure(id=name, value=points, interval=interval, n=n, command=COMMAND)
