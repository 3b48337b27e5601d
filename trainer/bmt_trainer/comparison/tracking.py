"""Closed gates, KL divergence from the base and retention of another skill, along a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from bmt_trainer.evaluation.kl import Policy, Texts, divergence
from bmt_trainer.masking.attach import CLOSED_GATES
from bmt_trainer.methods.run_folder import RunFolder

#: A step's row: step, closed_gates, kl_token, kl_sequence, and what `retention` returns.
Row = dict[str, float]


class Track(TrainerCallback):
    """Measures a row every `every` steps, before the first step and after the last.

    base, tuned: as in `divergence`; texts: completions that the base sampled; closed: the number of
    closed gates; retention: scores of another skill; heldout: the held-out score; the failure of
    one at the first measurement ends the run, and later is shown by `say`. The rows are the run's
    note `track`, so that a resumed run has those before it.
    """

    def __init__(
        self,
        base: Policy,
        tuned: Policy,
        texts: Texts,
        pad_token_id: int,
        run: RunFolder,
        *,
        every: int,
        closed: Callable[[], int],
        retention: Callable[[], Row] | None = None,
        heldout: Callable[[], Row] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._base, self._tuned, self._texts, self._pad = base, tuned, texts, pad_token_id
        self._run, self._every, self._closed, self._retention = run, every, closed, retention
        self._say, self._heldout = say, heldout
        self.rows: list[Row] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step
        self.rows = [row for row in self._run.notes.get("track", []) if row["step"] <= done]
        if not self.rows or self.rows[-1]["step"] < done:
            self._measure(done)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self._every == 0 or step == state.max_steps:
            self._measure(step)

    def _kept(self, name: str, scores: Callable[[], Row], step: int) -> Row:
        """The scores; none if they fail in a run that has trained already."""
        try:
            return scores()
        except Exception as error:  # whatever a task's data, code or grader raises
            if not self.rows:
                raise
            self._say(f"{name} failed at step {step}, and training goes on: {error}")
            return {}

    def _measure(self, step: int) -> None:
        kl = divergence(self._base, self._tuned, self._texts, self._pad)
        row: Row = {
            "step": step,
            CLOSED_GATES: self._closed(),
            "kl_token": kl.per_token,
            "kl_sequence": kl.per_sequence,
        }
        for name, scores in (("retention", self._retention), ("held-out score", self._heldout)):
            if scores is not None:
                row |= self._kept(name, scores, step)
        self.rows.append(row)
        self._run.note("track", self.rows)
