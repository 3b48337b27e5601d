"""Masks of a run's steps, kept for whoever watches it: a worker publishes them as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bmt_core import Mask
from transformers import TrainerCallback

from bmt_trainer.methods.validation.callback import Export
from bmt_trainer.methods.validation.unwritten import Masks


class StepMasks(TrainerCallback):
    """Every `every` steps, and at the last: the hard mask as `step-N.bmt` in the run's folder.

    One that the disk refuses is tried again. A resumed run writes those after its checkpoint
    again, with the same bytes.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        export: Export,
        write: Callable[[Mask, Path], None],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._every = folder, every
        self._export, self._masks = export, Masks(write, say)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._masks.retry()
        step = state.global_step
        file = self._folder / f"step-{step}.bmt"
        due = step and (step % self._every == 0 or step == state.max_steps)
        if not due or file.exists() or self._masks.waiting(file) is not None:
            return
        mask = self._export({"step": step})
        if mask.zeros:  # one without any is the base, which no server takes as a mask
            self._masks.save(mask, file)
