"""Mask sharpening: α grows linearly over training (paper, Eq. 7)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmt_trainer.masking.masked_linear import MaskState


def alpha_at(step: int, steps: int, start: float, end: float) -> float:
    """α(t) = α_start + t/T (α_end - α_start) (Eq. 7), for t = `step` of T = `steps`."""
    return start + step / steps * (end - start)


class SharpenMask(TrainerCallback):
    """Sets α before each optimizer step, t = 0 … T-1.

    α follows the trainer's step count, so that a resumed run continues at the right α. It is set
    when a step begins, so that all micro-batches of the step, forward and backward, use one α.
    """

    def __init__(self, state: MaskState, start: float, end: float) -> None:
        self._state, self._start, self._end = state, start, end

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._state.alpha = alpha_at(state.global_step, state.max_steps, self._start, self._end)
