"""A trainer whose run loses no work: finite values, checkpoints that are whole, signals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from bmt_trainer.distributed import any_rank, full_tensor, greatest, of_main_process
from bmt_trainer.errors import NonFinite, OutputError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods.guards.checkpoints import Checkpoints
from bmt_trainer.methods.guards.finite import check_gates
from bmt_trainer.methods.guards.interruption import Interruption
from bmt_trainer.methods.guards.sharded import ShardedCheckpoints
from bmt_trainer.process import is_main_process, world_size

#: Writes the logs of the steps so far.
History = Callable[[list[dict[str, Any]]], None]


@dataclass
class Guard:
    """The place of a trainer's checkpoints, and the signals that it heeds.

    Without checkpoints, the trainer's own are written unchecked; history: called at each
    checkpoint; say: shows a line.
    """

    checkpoints: Checkpoints | None = None
    interruption: Interruption = field(default_factory=Interruption)
    history: History | None = None
    say: Callable[[str], None] = print

    def allow(self, device: torch.device) -> None:
        """Let a signal that waits end the run: in all processes, if one of them has it.

        They must end after the same step, or none could write a checkpoint. Collective.
        """
        if world_size() == 1:
            self.interruption.allow()
        elif signum := greatest(self.interruption.waiting, device):
            self.interruption.end(signum)


class GuardedTraining(ShardedCheckpoints):
    """Mixin before a `transformers.Trainer` in a class's bases.

    Raises NonFinite for a loss, a gradient norm or gates that are not finite, before the optimizer
    spoils anything. A signal ends a step before the optimizer has begun, in rollouts too, or after
    the step is logged; `keep` then writes a checkpoint of the last whole step. Of several processes
    it ends all, and only after a step is logged.

    transformers 5.19, trainer.py: `training_step`, `_get_grad_norm`, `_save_checkpoint`, `_save`.
    """

    attached: Attached

    def __init__(self, *args: Any, guard: Guard | None = None, **kwargs: Any) -> None:
        self.guard = guard or Guard()
        self._loss_is_finite: Tensor | None = None
        self._after_step = _AfterStep(self.guard)
        super().__init__(*args, **kwargs)
        # First, so that a validation, which another callback runs, can be interrupted.
        self.callback_handler.callbacks.insert(0, self._after_step)  # type: ignore[attr-defined]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: a run's folder is removed in the end."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and let signals end the run again."""
        trainer: Any = self
        if world_size() > 1:
            self.guard.interruption.defer()
        output = super().train(*args, **kwargs)  # type: ignore[misc]
        self.guard.allow(trainer.args.device)
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if world_size() == 1:
            self.guard.interruption.allow()
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        finite = torch.isfinite(loss.detach()).all()
        before = self._loss_is_finite
        self._loss_is_finite = finite if before is None else before & finite
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.guard.interruption.defer()
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        loss, self._loss_is_finite = self._loss_is_finite, None
        self._check("loss", loss)
        if norm is not None:
            self._check("gradient norm", torch.isfinite(full_tensor(torch.as_tensor(norm))))
        return norm

    def _check(self, what: str, finite: Tensor | None) -> None:
        """Raise NonFinite in all processes if it is not finite in one."""
        trainer: Any = self
        if finite is not None and any_rank(not bool(finite), finite.device):
            raise NonFinite(
                f"step {trainer.state.global_step + 1}: the {what} is not finite; the gates are "
                f"those of step {trainer.state.global_step}. Lower learning_rate, or look at the "
                "data and rewards of this step"
            )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        check_gates(self.attached, trainer.state.global_step)
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, **kwargs)  # type: ignore[misc]
        # Callbacks have validated, which signals may interrupt; what follows they may not.
        self.guard.interruption.defer()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        step = trainer.state.global_step
        self.guard.interruption.defer()

        def write() -> None:
            super(GuardedTraining, self)._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

        if self.guard.checkpoints is None:
            write()
            return
        self.gather()
        if is_main_process():
            self.guard.checkpoints.save(step, write)
        self.release()
        if self.guard.history is not None:
            try:
                self.guard.history(trainer.state.log_history)
            except OutputError as error:
                self.guard.say(f"{error}; training goes on")

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Save without the tokenizer: it is the base's, and most of a checkpoint's bytes."""
        trainer: Any = self
        kept, trainer.processing_class = trainer.processing_class, _Unsaved()
        try:
            super()._save(*args, **kwargs)  # type: ignore[misc]
        finally:
            trainer.processing_class = kept

    def keep(self) -> int | None:
        """Write a checkpoint of the last whole step after a signal or an error; its step, or None.

        Until the optimizer has begun the next step, only generators and counts have moved on.
        """
        trainer: Any = self
        step, checkpoints = trainer.state.global_step, self.guard.checkpoints
        if checkpoints is None or trainer.args.save_strategy == "no" or not step:
            return None
        if self._is_kept(step):
            return int(step)
        if any_rank(not self._after_step.restore(trainer.state), trainer.args.device):
            return None
        self._save_checkpoint(trainer.model, None)
        return int(step) if self._is_kept(step) else None

    def _is_kept(self, step: int) -> bool:
        """True in all processes if the first one has a checkpoint of the step."""
        assert self.guard.checkpoints is not None
        kept = self.guard.checkpoints.candidates()
        return of_main_process(any(p.name == f"checkpoint-{step}" for p in kept))


class _Unsaved:
    """A tokenizer's place while a checkpoint is saved."""

    def save_pretrained(self, folder: str) -> None:
        """Write nothing."""


class _AfterStep(TrainerCallback):
    """Remembers, once a step is logged, the random generators and counts that it left."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._step, self._tokens = -1, 0
        self._generators: tuple[Any, ...] = ()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._generators = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda
        self._step, self._tokens = state.global_step, state.num_input_tokens_seen
        self._guard.allow(args.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # From here on the gates are of no whole step, until the next one is logged.
        self._step = -1

    def restore(self, state: Any) -> bool:
        """Set what was remembered of the step in `state`; False if it is another step's."""
        if self._step != state.global_step:
            return False
        python, numpy, cpu, cuda = self._generators
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        state.num_input_tokens_seen = self._tokens
        return True
