"""Mean reward of the hard mask's greedy answers in training, and the best mask so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import bmt_core
from bmt_core import Mask
from transformers import TrainerCallback

from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import of_main_process
from bmt_trainer.errors import RewardError
from bmt_trainer.evaluation.score import Score
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods.run_folder import RunFolder
from bmt_trainer.rewards.watch import equal_validations


class Export(Protocol):
    """The hard mask of the gates' current values, with metadata."""

    def __call__(self, metadata: Mapping[str, Any]) -> Mask: ...


class Validation(TrainerCallback):
    """Every `every` steps, and at the last: score `examples`, save the mask if it is the best.

    The best has the greatest mean reward; of equal ones, the latest. The scores are the run's note
    `validation`: step, zeros and score of each, so that a resumed run has those before it.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        every: int,
        attached: Attached,
        run: RunFolder,
        score: Callable[[Sequence[Example]], Score],
        export: Export,
        write: Callable[[Mask, Path], None],
        say: Callable[[str], None],
    ) -> None:
        self._examples, self._every, self._attached = examples, every, attached
        self._run = run
        self._score, self._export, self._write, self._say = score, export, write, say
        self._warned = False

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Step, zeros and score of each validation so far."""
        return list(self._run.notes.get("validation", []))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # An interrupted run may have validated after its last checkpoint; those steps run again.
        done = state.global_step
        self._run.note("validation", [v for v in self.scores if v["step"] <= done])
        self._validate_once(state)  # a signal may have come between a step and its validation

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Not at the step's end: once it is logged, all of it is done, and a checkpoint of it can be
        # written if a signal interrupts the validation.
        self._validate_once(state)

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
        if all(result["mean"] >= v["mean"] for v in before):
            self._write(self._export({"step": step}), self._file(step))
        zeros = self._attached.zeros
        self._run.note("validation", [*before, {"step": step, "zeros": zeros, **result}])
        self._say(f"step {step}: {score}")
        if not self._warned and (warning := self._equal(final=False)):
            self._warned = True
            self._say(f"warning: {warning}")

    def warnings(self) -> list[str]:
        """A warning if no validation of the finished run differs from another."""
        warning = self._equal(final=True)
        return [] if warning is None else [warning]

    def _equal(self, *, final: bool) -> str | None:
        return equal_validations([v["mean"] for v in self.scores], final=final)

    def load_best(self) -> int | None:
        """Set the gates to the mask of the best score, the later of equals, and return its step.

        None without a validation: the gates stay.
        """
        if not self.scores:
            return None
        step = int(max(self.scores, key=lambda v: (v["mean"], v["step"]))["step"])
        self._attached.load_mask(bmt_core.load(self._file(step)))
        return step

    def _file(self, step: int) -> Path:
        # A file per step: a resumed run may score the steps after its checkpoint differently, with
        # rollouts from a server, and the best mask before them must still be there.
        return self._run.folder / f"best-{step}.bmt"
