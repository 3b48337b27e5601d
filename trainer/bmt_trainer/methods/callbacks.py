"""Mask sharpening: α grows linearly over training (paper, Eq. 7)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskState


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
        self._state.alpha = sharpness(state.global_step, state.max_steps, self._start, self._end)
