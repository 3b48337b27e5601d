"""What training does to a model on its way: zeros, distance from the base, what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from bmt_trainer.evaluation.kl import Policy, Texts, divergence
from bmt_trainer.methods.run_folder import Run

#: A step's row: step, zeros, kl_token, kl_sequence, and what `keeps` tells.
Row = dict[str, float]


class Track(TrainerCallback):
    """Every `every` steps, before the first and after the last, a row.

    base, tuned: as in `divergence`, on texts that the base sampled; zeros: the weights that are
    deleted; keeps: of another skill, `retention`, `retention_lenient` (shares) and n. The rows are
    notes of the run, `track`, so that a run that goes on has those from before.
    """

    def __init__(
        self,
        base: Policy,
        tuned: Policy,
        texts: Texts,
        padding: int,
        run: Run,
        *,
        every: int,
        zeros: Callable[[], int],
        keeps: Callable[[], Row] | None = None,
    ) -> None:
        self._base, self._tuned, self._texts, self._padding = base, tuned, texts, padding
        self._run, self._every, self._zeros, self._keeps = run, every, zeros, keeps
        self.rows: list[Row] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step
        self.rows = [row for row in self._run.notes.get("track", []) if row["step"] <= done]
        if not self.rows or self.rows[-1]["step"] < done:
            self._look(done)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self._every == 0 or step == state.max_steps:
            self._look(step)

    def _look(self, step: int) -> None:
        found = divergence(self._base, self._tuned, self._texts, self._padding)
        row: Row = {
            "step": step,
            "zeros": self._zeros(),
            "kl_token": found.per_token,
            "kl_sequence": found.per_sequence,
        }
        if self._keeps is not None:
            row |= self._keeps()
        self.rows.append(row)
        self._run.note("track", self.rows)
