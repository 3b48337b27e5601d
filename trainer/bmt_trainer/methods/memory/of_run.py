"""Lines on a run's memory, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from bmt_trainer import models
from bmt_trainer.masking.targets import held_by, select
from bmt_trainer.methods.config import (
    DpoConfig,
    GrpoConfig,
    KtoConfig,
    OnPolicyConfig,
    SdftConfig,
    SftConfig,
    TrainConfig,
)
from bmt_trainer.methods.memory.estimate import Estimate, Trained, estimate, gib
from bmt_trainer.methods.memory.estimate import rollout_rows as rows_of_estimate
from bmt_trainer.methods.memory.machine import memory_of
from bmt_trainer.methods.memory.shapes import shapes_of
from bmt_trainer.process import world_size

#: Methods by the command that trains by them.
METHODS: Mapping[str, type[TrainConfig]] = {
    "sft": SftConfig,
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "grpo": GrpoConfig,
    "sdft": SdftConfig,
}


class Run(Protocol):
    """A run before its weights are loaded.

    folder: of the checkpoint; gates: of each masked layer, the number; lengths: of the training
    examples in tokens, if they are known.
    """

    @property
    def config(self) -> TrainConfig: ...
    @property
    def folder(self) -> Path: ...
    @property
    def gates(self) -> Sequence[int]: ...
    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def device(self) -> torch.device: ...


def lines_of_run(run: Run, trained: Trained = "gates") -> Iterator[str]:
    """The estimate of a run, and a warning if its device has less memory."""
    config, device = run.config, run.device
    model = models.outline(run.folder)
    held, stacked = held_by(select(model, config.targets).values())
    made = estimate(
        config,
        shapes_of(model, run.gates, config.precision, device, held=held, stacked=stacked),
        longest=max(run.lengths, default=None),
        on_gpu=device.type == "cuda",
        processes=world_size(),
        trained=trained,
        memory=memory_of(device),
    )
    yield made.line()
    there = memory_of(device)
    if there is not None and made.peak > there:
        yield (
            f"warning: memory: {device} has {gib(there)}, and the run may take "
            f"{gib(made.peak)}; {_advice(config)}"
        )


def rollout_rows(
    config: OnPolicyConfig,
    model: PreTrainedModel,
    gated: Sequence[int],
    lengths: Sequence[int],
    new: int,
    *,
    held: int = 0,
) -> int:
    """Completions that transformers samples at once in this process, see `estimate.rollout_rows`.

    gated: gates of each masked layer; without any the model is a baseline, of which all weights
    are trained or an adapter's alone. lengths: of the training prompts, in tokens; new: tokens of
    a completion at most; held: as in `Shapes`.
    """
    whole = all(parameter.requires_grad for parameter in model.parameters())
    return rows_of_estimate(
        config,
        shapes_of(model, gated, config.precision, model.device, held=held),
        longest=max(lengths, default=config.max_length),
        new=new,
        memory=memory_of(model.device),
        processes=world_size(),
        trained="gates" if gated else "weights" if whole else "adapter",
    )


def of_defaults(
    folder: Path, gated: Sequence[int], device: torch.device, targets: str | None = None
) -> dict[str, Estimate]:
    """By method, the estimate with its default settings on a model, on this device."""
    model, made = models.outline(folder), {}
    held, stacked = held_by(select(model, targets).values())
    for name, kind in METHODS.items():
        config = kind(model=str(folder), dataset="task:initials", output=Path("mask.bmt"))
        shapes = shapes_of(model, gated, config.precision, device, held=held, stacked=stacked)
        on_gpu, memory = device.type == "cuda", memory_of(device)
        made[name] = estimate(config, shapes, on_gpu=on_gpu, memory=memory)
    return made


def _advice(config: TrainConfig) -> str:
    sizes = ["eval_batch_size", "max_new_tokens"]
    # Rollouts by transformers are in pieces that fit, however many prompts a step has.
    sizes += ["micro_batch"] if isinstance(config, OnPolicyConfig) else ["batch_size"]
    if isinstance(config, OnPolicyConfig) and config.rollouts == "vllm":
        sizes += ["vllm_memory"]
    checkpointing = "" if config.gradient_checkpointing else ", or set gradient_checkpointing"
    return f"lower {', '.join(sizes)} or max_length{checkpointing}"
