"""Scores of the hard mask in training: the best mask so far, and the end if none is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import bmt_core
from bmt_core import Mask
from transformers import TrainerCallback

from bmt_trainer.distributed import of_main_process
from bmt_trainer.errors import OutputError, RewardError
from bmt_trainer.masking.attach import CLOSED_GATES, Attached
from bmt_trainer.methods.run_folder import RunFolder
from bmt_trainer.methods.validation.unwritten import Masks
from bmt_trainer.rewards.watch import equal_validations

E = TypeVar("E")


class Scored(Protocol):
    """A score that is kept as JSON and shown as text."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Measure:
    """The number of a score by which masks are chosen: its key, and if less is better."""

    key: str
    less: bool = False

    def of(self, score: Mapping[str, Any]) -> float:
        """The number, so that more is better."""
        return -float(score[self.key]) if self.less else float(score[self.key])


REWARD, LOSS = Measure("mean"), Measure("loss", less=True)


class StoppedEarly(Exception):
    """A resumed run had stopped at the step of its checkpoint: there is nothing to train."""


class Export(Protocol):
    """The hard mask of the gates' current values, with metadata."""

    def __call__(self, metadata: Mapping[str, Any]) -> Mask: ...


class Validation(TrainerCallback):
    """Every `every` steps, and at the last: score `examples`, save the mask if it is the best.

    The best has the greatest mean reward, or what `measure` says; of equal ones, the latest. The
    scores are the run's note `validation`: step, closed gates and score of each, so that a resumed
    run has those before it. patience: validations in a row without a better one, which end the
    training.
    """

    def __init__(
        self,
        examples: Sequence[E],
        *,
        every: int,
        attached: Attached,
        run: RunFolder,
        score: Callable[[Sequence[E]], Scored],
        export: Export,
        write: Callable[[Mask, Path], None],
        say: Callable[[str], None],
        measure: Measure = REWARD,
        patience: int | None = None,
    ) -> None:
        self._measure, self._patience = measure, patience
        self._examples, self._every, self._attached = examples, every, attached
        self._run = run
        self._score, self._export, self._say = score, export, say
        self._masks = Masks(write, say)
        self._warned = False

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Step, closed gates and score of each validation so far."""
        return list(self._run.notes.get("validation", []))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # An interrupted run may have validated after its last checkpoint; those steps run again.
        done = state.global_step
        self._note([v for v in self.scores if v["step"] <= done])
        while (step := self.best_step) is not None and not self._is_kept(step):
            self._say(f"validation of step {step}: its mask was not written, so it is left out")
            self._note([v for v in self.scores if v["step"] != step])
        # A signal may have come between a step and its validation.
        self._validate_once(state)
        if self._is_out_of_patience():
            raise StoppedEarly

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Not at the step's end: once it is logged, all of it is done, and a checkpoint of it can be
        # written if a signal interrupts the validation.
        self._masks.retry()
        self._validate_once(state)
        if self._is_out_of_patience() and not control.should_training_stop:
            control.should_training_stop = True
            if state.global_step < state.max_steps:
                self._say(
                    f"stopped at step {state.global_step} of {state.max_steps}: no validation was "
                    f"better than that of step {self.scores[self._first_best()]['step']} "
                    f"(patience {self._patience})"
                )

    @property
    def stopped(self) -> bool:
        """True if patience ended the training."""
        return self._is_out_of_patience()

    def _first_best(self) -> int:
        """The index of the first validation that none exceeds."""
        values = [self._measure.of(v) for v in self.scores]
        return values.index(max(values))

    def _is_out_of_patience(self) -> bool:
        count = len(self.scores)
        if self._patience is None or not count:
            return False
        return count - 1 - self._first_best() >= self._patience

    def _validate_once(self, state: Any) -> None:
        step = state.global_step
        due = step and (step % self._every == 0 or step == state.max_steps)
        if self._examples and due and all(v["step"] != step for v in self.scores):
            self._validate(step)

    def _validate(self, step: int) -> None:
        with self._attached.state.use("hard"):
            try:
                # A judge may answer each process differently, and all must choose one mask.
                score = of_main_process(self._score(self._examples))
            except RewardError as error:
                raise RewardError(f"validation of step {step}: {error}") from error
        before, result = self.scores, score.to_json()
        value = self._measure.of(result)
        if all(value >= self._measure.of(v) for v in before):
            self._masks.save(self._export({"step": step}), self._file(step), alone=True)
        closed = {CLOSED_GATES: self._attached.closed}
        self._note([*before, {"step": step, **closed, **result}])
        self._say(f"step {step}: {score}")
        if not self._warned and (warning := self._equal(final=False)):
            self._warned = True
            self._say(f"warning: {warning}")

    def _note(self, scores: list[dict[str, Any]]) -> None:
        try:
            self._run.note("validation", scores)
        except OutputError as error:  # they are in memory, and the next checkpoint writes them
            self._say(f"{error}; training goes on")

    def _is_kept(self, step: int) -> bool:
        return of_main_process(self._file(step).exists())

    def warnings(self) -> list[str]:
        """A warning if no validation of the finished run differs from another."""
        warning = self._equal(final=True)
        return [] if warning is None else [warning]

    def _equal(self, *, final: bool) -> str | None:
        if self._measure.less:  # losses differ as soon as a gate crosses 0
            return None
        return equal_validations([v["mean"] for v in self.scores], final=final)

    @property
    def best_step(self) -> int | None:
        """The step of the best score, the later of equals; None without a validation."""
        if not self.scores:
            return None
        best = max(self.scores, key=lambda v: (self._measure.of(v), v["step"]))
        return int(best["step"])

    def load_best(self) -> int | None:
        """Set the gates to the mask of the best score, and return its step.

        None without a validation: the gates stay.
        """
        if (step := self.best_step) is not None:
            file = self._file(step)
            waiting = self._masks.waiting(file)
            self._attached.load_mask(bmt_core.load(file) if waiting is None else waiting)
        return step

    def _file(self, step: int) -> Path:
        # A file per step: a resumed run may score the steps after its checkpoint differently, with
        # rollouts from a server, and the best mask before them must still be there.
        return self._run.folder / f"best-{step}.bmt"
