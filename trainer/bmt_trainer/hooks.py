"""What every method adds to its TRL trainer."""

from __future__ import annotations

from typing import Any

from bmt_trainer.attach import Attached
from bmt_trainer.masking import MaskState
from bmt_trainer.sampling import sample


class MaskedTraining:
    """To be named before a `transformers.Trainer` in a class's bases.

    Sets the regulariser, and evaluates under the hard mask (Eq. 8). Training runs under the soft
    one, the state's default. Set `attached` and `reg_lambda` before `train()`.
    """

    attached: Attached
    reg_lambda: float

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        # Each micro-batch's backward adds the term once, the sum of them is to have it once.
        accumulated = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self.attached.state.regularizer = self.reg_lambda / accumulated
        return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self.attached.state.use("hard"):
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]


class HardRollouts:
    """To be named before `MaskedTraining` and TRL's `GRPOTrainer`: samples under the hard mask.

    A trainer calls `model.train()` before it generates, so the mode is set here (TRL 1.16,
    trainer/grpo_trainer.py, `_generate_single_turn`). `sample` answers in its place: the same
    distribution, in less time.
    """

    attached: Attached

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        trainer: Any = self
        with self.attached.state.use("hard"):
            found = sample(
                trainer.model,
                prompt_ids,
                max_new_tokens=trainer.args.max_completion_length,
                temperature=trainer.args.temperature,
                eos=trainer.eos_token_ids,
                padding=trainer._tokenizer.pad_token_id,
            )
        return found, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs["zeros"] = self.attached.zeros
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class BaseReference:
    """A KL reference that is the policy with its mask off: no second copy of the weights."""

    def __init__(self, model: Any, state: MaskState) -> None:
        self._model, self._state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._state.use("off"):
            return self._model(*args, **kwargs)


def save_gates_only(model: Any, attached: Attached) -> None:
    """Make a trainer's checkpoints hold the gates alone: the base never changes.

    Restoring is not strict, so such a checkpoint loads into the attached model.
    """
    gates = {f"{name}.gate_logits" for name in attached.layers}
    model._keys_to_ignore_on_save = {key for key in model.state_dict() if key not in gates}
