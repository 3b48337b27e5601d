"""Memory of a comparison by the trainer's estimate, and its runs that do not fit a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from bmt_trainer import models
from bmt_trainer.comparison.plan import Plan
from bmt_trainer.comparison.runner import trained_by
from bmt_trainer.masking.targets import select
from bmt_trainer.methods.memory.estimate import Estimate, estimate, gib
from bmt_trainer.methods.memory.shapes import shapes_of
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from reproduce.catalog import Hardware

# Bytes of a GB, as in names of GPUs.
_GB = 10**9


def _llama(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=64 if hidden == 2048 else 128,
        vocab_size=128256,
        tie_word_embeddings=tied,
        dtype=torch.bfloat16,
    )


def _qwen(
    hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, *, tied: bool
) -> PretrainedConfig:
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        dtype=torch.bfloat16,
    )


#: Shapes of the paper's models, from each one's config.json on the Hub, so that nothing is
#: downloaded for a list.
SHAPES: Mapping[str, PretrainedConfig] = {
    "meta-llama/Llama-3.2-1B-Instruct": _llama(2048, 8192, 16, 32, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(3072, 8192, 28, 24, tied=True),
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama(4096, 14336, 32, 32, tied=False),
    "Qwen/Qwen2.5-0.5B": _qwen(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-3B": _qwen(2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
}


@dataclass(frozen=True)
class Use:
    """Memory of a comparison's runs of one method on one model."""

    method: str
    model: str
    estimate: Estimate

    def __str__(self) -> str:
        return f"{self.method} of {Path(self.model).name} {gib(self.estimate.peak)}"


def room(hardware: Hardware) -> int | None:
    """Bytes of memory of a GPU; None for a machine without one, of which nothing is claimed."""
    return hardware.gpu_gb * _GB if hardware.gpus else None


def uses(plan: Plan, hardware: Hardware) -> list[Use]:
    """An estimate of each method that trains, on each model whose shapes are known.

    Of runs with several settings or data sets, the largest. On a GPU rollouts are in pieces of as
    many completions as fit, as the trainer takes them there.
    """
    on_gpu = bool(hardware.gpus)
    made: dict[tuple[str, str], Use] = {}
    for cell in plan.cells():
        outline = _outline(cell.model)
        if cell.kind in ("base", "wanda") or outline is None:
            continue
        config = cell.config()
        gated = [target.numel for target in select(outline, config.targets).values()]
        shapes = shapes_of(outline, gated, config.precision, "cuda" if on_gpu else "cpu")
        found = estimate(
            *(config, shapes),
            on_gpu=on_gpu,
            trained=trained_by(cell.kind),
            memory=room(hardware),
        )
        key = (cell.method, cell.model)
        if key not in made or found.peak > made[key].estimate.peak:
            made[key] = Use(cell.method, cell.model, found)
    return list(made.values())


def lines(plan: Plan, hardware: Hardware) -> Iterator[str]:
    """The most memory that a run takes, and those that do not fit the hardware's."""
    found = uses(plan, hardware)
    if not found:
        return
    most = max(found, key=lambda use: use.estimate.peak)
    yield most.estimate.line(f"memory of {most.method} of {Path(most.model).name}, the most")
    # Of a machine nothing is claimed: the small recipes' rows are far shorter than max_length.
    there = room(hardware)
    if there and (beyond := [str(use) for use in found if use.estimate.peak > there]):
        yield (
            f"does not fit one GPU of {hardware.gpu_gb} GB ({gib(there)}), {len(beyond)} of "
            f"{len(found)} methods and models: {', '.join(beyond)}"
        )


@cache
def _outline(model: str) -> nn.Module | None:
    """The model on torch's meta device; None for one whose shapes are not known here."""
    if Path(model).is_dir():
        return models.outline(Path(model))
    if model not in SHAPES:
        return None
    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(SHAPES[model])
    return made
