"""Greedy accuracy of the hard mask while it is trained, and the best mask so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bmt_core
from bmt_core import Mask
from transformers import TrainerCallback

if TYPE_CHECKING:
    from bmt_trainer.data.examples import Example
    from bmt_trainer.methods.session import Session


# The best mask so far, in the run's folder.
_BEST = "best.bmt"


class Validate(TrainerCallback):
    """Every `every` steps, and at the last: score `examples`, keep the mask if it is the best.

    The scores are notes of the run, `validation`: step and score of each.
    """

    def __init__(self, session: Session, examples: Sequence[Example], *, every: int) -> None:
        self._session, self._examples, self._every = session, examples, every
        self._file = session.run.folder / _BEST

    def begin(self, done: int) -> None:
        """Forget what an interrupted run saw after step `done`, from which it goes on."""
        before = self._session.run.notes.get("validation", [])
        self._session.run.note("validation", [v for v in before if v["step"] <= done])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if self._examples and (step % self._every == 0 or step == state.max_steps):
            self._score(step)

    def _score(self, step: int) -> None:
        session = self._session
        with session.attached.state.use("hard"):
            score = session.score.of(self._examples)
        scores = session.run.notes["validation"]
        found = score.to_json()
        if all(found[session.reading] > v[session.reading] for v in scores):
            session.write(session.export({"step": step}), self._file)
        zeros = session.attached.zeros
        session.run.note("validation", [*scores, {"step": step, "zeros": zeros, **found}])
        session.display.say(f"step {step}: {score}")


def finish_best(session: Session, select: str, told: Mapping[str, Any]) -> Mask:
    """Write the best validated mask, or the last one: without validation, or if `select` says."""
    if select == "best" and (best := best_of(session)) is not None:
        step, mask = best
        told = {**told, "step": step}
        session.attached.hold(mask)
    return session.finish(dict(told))


def best_of(session: Session) -> tuple[int, Mask] | None:
    """The step and mask of the best score, the earlier of equals; None without validation."""
    scores = session.run.notes["validation"]
    if not scores:
        return None
    step = max(scores, key=lambda v: v[session.reading])["step"]
    return step, bmt_core.load(session.run.folder / _BEST)
