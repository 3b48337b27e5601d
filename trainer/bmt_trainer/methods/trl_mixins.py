"""Mixins that put masks into TRL's trainers, and the callbacks and the reference of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmt_trainer.data.batching import SharedBatches, collate_share
from bmt_trainer.masking.attach import CLOSED_GATES, Attached
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskState, Mode
from bmt_trainer.methods.guards.training import GuardedTraining
from bmt_trainer.methods.rollouts import samples
from bmt_trainer.methods.rollouts.local import sample
from bmt_trainer.methods.rollouts.shared_prefix import SharedPrompts
from bmt_trainer.methods.rollouts.steps import StepRollouts
from bmt_trainer.models import finite_logits
from bmt_trainer.process import rank, world_size

#: Of a step of self-distillation, the share of its answers without a token that has a loss.
UNLEARNED = "completions/unlearned_ratio"


class MaskedTraining(GuardedTraining):
    """Mixin before a `transformers.Trainer` in a class's bases.

    Sets the regularizer, and evaluates under the hard mask (Eq. 8). Training runs under the soft
    one, the state's default. guard: see `GuardedTraining`; figures: of a run with trackers, added
    to each step's entry with the closed gates and the flips since the entry before.
    """

    def __init__(
        self,
        *args: Any,
        attached: Attached,
        reg_lambda: float,
        figures: Callable[[], Mapping[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        # Set first: a trainer may read them while it is made.
        self.attached, self.reg_lambda = attached, reg_lambda
        self._figures = figures
        self._closed_before: list[Tensor] | None = None
        super().__init__(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # The last entry of a run sums it up, and is of no step.
        if self._figures is not None and "train_runtime" not in logs:
            logs |= {**self._flips(), **self._figures()}
            samples.report(self, self.sampled_rows())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def sampled_rows(self) -> samples.Table:
        """A few completions of the last step, of a method that samples them."""
        return {}

    def _flips(self) -> dict[str, float]:
        """The number of closed gates, and of those that came or went since the last call."""
        now = [layer.zero_positions() for layer in self.attached.layers.values()]
        before, self._closed_before = self._closed_before, now
        found = {CLOSED_GATES: float(sum(map(len, now)))}
        if before is not None:
            same = sum(int(torch.isin(a, b).sum()) for a, b in zip(before, now, strict=True))
            count = sum(map(len, before)) + sum(map(len, now))
            found["mask_flips"] = float(count - 2 * same)
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        # The backward of each micro-batch adds the term; their sum must have it once.
        accumulated = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self.attached.state.regularizer = self.reg_lambda / accumulated
        return super().training_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self.attached.state.use("hard"):
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]


class SharedRows:
    """Mixin before a `transformers.Trainer` in a class's bases: several processes train on the
    rows of one process, in its steps and order.

    By default accelerate fills an epoch's last batch with rows from its beginning, so that all
    processes have as many (accelerate 1.15, data_loader.py, `BatchSamplerShard`). Sampler, seed
    and columns are still the trainer's (transformers 5.19, trainer.py, `_get_dataloader`).
    """

    def get_train_dataloader(self) -> Any:
        trainer: Any = self
        if world_size() == 1:
            return super().get_train_dataloader()  # type: ignore[misc]
        rows = trainer._remove_unused_columns(trainer.train_dataset, description="Training")
        size = trainer.args.per_device_train_batch_size
        sampler = trainer._get_train_sampler(rows)
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=SharedBatches(sampler, size, world_size(), rank()),
            collate_fn=self.collate_share(rows[0]),
        )
        return prepare_data_loader(
            loader,
            device=trainer.accelerator.device,
            # The shares are made already.
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=trainer.args.data_seed,
        )

    def collate_share(self, row: Any) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Collate a process's share of a batch, which may be short or empty; row: any of the data.

        The loss of a share has to be a sum over the batch of all processes, as SFT's is.
        """
        trainer: Any = self
        return collate_share(trainer.data_collator, row)


class HardSampling:
    """Sampling under the hard mask, and the closed gates in each log entry.

    A trainer calls `model.train()` before it generates, so the mode is set here. `sample` replaces
    TRL's own generation: the same distribution, in less time. at_once: completions in memory.
    """

    attached: Attached
    _figures: Callable[[], Mapping[str, float]] | None

    def __init__(self, *args: Any, at_once: int | None = None, **kwargs: Any) -> None:
        self._at_once = at_once
        super().__init__(*args, **kwargs)

    def sampled(
        self,
        prompt_ids: list[list[int]],
        mode: Mode = "hard",
        temperature: float | None = None,
    ) -> list[list[int]]:
        """A completion of each prompt under the hard mask (Eq. 8), with the trainer's settings.

        mode: instead of the hard one; temperature: instead of the trainer's, 0 is greedy.
        """
        trainer: Any = self
        with self.attached.state.use(mode), finite_logits(trainer.model):
            return sample(
                trainer.model,
                prompt_ids,
                max_new_tokens=trainer.args.max_completion_length,
                temperature=trainer.args.temperature if temperature is None else temperature,
                eos_token_ids=trainer.eos_token_ids,
                pad_token_id=trainer._tokenizer.pad_token_id,
                top_p=trainer.args.top_p,
                top_k=trainer.args.top_k,
                min_p=trainer.args.min_p or 0.0,
                at_once=self._at_once,
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs[CLOSED_GATES] = self.attached.closed
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class HardRollouts(HardSampling):
    """Mixin before `MaskedTraining` and TRL's `GRPOTrainer`: samples under the hard mask, and
    reads each prompt once in losses.

    TRL 1.16, trainer/grpo_trainer.py: `_generate_single_turn`,
    `_get_per_token_logps_and_entropies`.
    """

    def sampled_rows(self) -> samples.Table:
        trainer: Any = self
        kept = trainer._logs
        return samples.some(
            {
                "prompt": kept["prompt"],
                "completion": kept["completion"],
                **samples.reward_columns(kept["rewards"]),
                "advantage": kept["advantages"],
            }
        )

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        return self.sampled(prompt_ids), None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        trainer: Any = self
        state, plain = self.attached.state, trainer.model
        # Checkpointing drops the shared cache, and sharded layers would be gathered twice.
        if world_size() == 1 and not plain.is_gradient_checkpointing:
            prompt = input_ids.shape[1] - logits_to_keep
            model = SharedPrompts(model, plain.config, state, prompt)
        return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )


class MaskTeacher(HardSampling):
    """Mixin before `MaskedTraining` and TRL's `SDFTTrainer`: the teacher is the same model under
    the teacher's hard mask, and the student samples under its own.

    TRL 1.16, experimental/sdft/sdft_trainer.py: `_generate`, `_setup_teacher_model` (its own EMA
    would hold a second model), `_get_teacher_context_for_self_distillation`. Without masked layers
    the model is a baseline, whose teacher is TRL's. rollouts: the servers that sample the
    student's answers; None: the model.
    """

    _rows: samples.Table = MappingProxyType({})

    def __init__(self, *args: Any, rollouts: StepRollouts | None = None, **kwargs: Any) -> None:
        self.rollouts = rollouts
        super().__init__(*args, **kwargs)

    def sampled_rows(self) -> samples.Table:
        return self._rows

    def sample_rollouts(self, inputs: list[dict[str, Any]]) -> Any:
        batch = super().sample_rollouts(inputs)  # type: ignore[misc]
        trainer: Any = self
        learned = batch["completion_mask"][:, trainer.num_loss_tokens_to_skip :].any(-1)
        self._log_metric(UNLEARNED, 1 - float(learned.float().mean()))
        if self._figures is not None:
            decode, pairs = trainer._tokenizer.decode, ("completion_ids", "completion_mask")
            texts = [
                decode(ids[mask.bool()], skip_special_tokens=True)
                for ids, mask in zip(*(batch[name] for name in pairs), strict=True)
            ]
            prompts = [row["prompt"] for row in inputs]
            self._rows = samples.some({"prompt": prompts, "completion": texts})
        return batch

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        if self.rollouts is not None:
            return prompt_ids, self.rollouts.turn(prompt_ids, self, first=True)[0]
        return prompt_ids, self.sampled(prompt_ids)

    def _log_metric(self, name: str, value: float) -> None:
        """Add a figure to the step's entry, as TRL's GRPO trainer does."""
        trainer: Any = self
        trainer._metrics["train"][name].append(value)

    def _setup_teacher_model(self) -> None:
        trainer: Any = self
        if not self.attached.layers:
            super()._setup_teacher_model()  # type: ignore[misc]
            return
        trainer.teacher_model = trainer.model
        trainer.add_callback(UpdateTeacher(self.attached, trainer.args.teacher_update_rate))

    def _get_teacher_context_for_self_distillation(self) -> Any:
        if not self.attached.layers:
            return super()._get_teacher_context_for_self_distillation()  # type: ignore[misc]
        return self.attached.state.use("teacher")


class SharpenMask(TrainerCallback):
    """Sets α before each optimizer step, t = 0 … T-1: it grows linearly (paper, Eq. 7).

    α follows the trainer's step count, so that a resumed run continues at the right α. It is set
    when a step begins, so that all micro-batches of the step, forward and backward, use one α.
    """

    # Departure: Eq. 7 has t = 0 … T; no step here trains at its end value.

    def __init__(self, state: MaskState, start: float, end: float) -> None:
        self._state, self._start, self._end = state, start, end

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._state.alpha = sharpness(state.global_step, state.max_steps, self._start, self._end)


class UpdateTeacher(TrainerCallback):
    """Moves the teacher's gates towards the student's after each optimizer step (Eq. 4)."""

    def __init__(self, attached: Attached, rate: float) -> None:
        self._attached, self._rate = attached, rate

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._attached.update_teacher(self._rate)


class BaseReference:
    """A KL reference that is the policy with its mask off: no second copy of the weights."""

    # Departure: TRL's k3 estimator, without verl's clamp at 10.

    def __init__(self, model: Any, state: MaskState) -> None:
        self._model, self._state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._state.use("off"):
            return self._model(*args, **kwargs)


def save_gates_only(model: Any, attached: Attached) -> None:
    """Make a trainer's checkpoints hold the gates only, as the model names them: the base never
    changes.
    """
    kinds = ("gate_logits", "teacher_logits")
    gates = {f"{name}.{kind}" for name in attached.layers for kind in kinds}
    model._keys_to_ignore_on_save = {key for key in model.state_dict() if key not in gates}
    # transformers would name the gates as the family's released checkpoints do (5.19,
    # modeling_utils.py), and find none of them under these names.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
