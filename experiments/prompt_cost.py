"""Seconds of a GRPO step's loss: each prompt read once against once for each completion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import demo_model
from benchmarks.stats import estimate, median
from experiments.record import keep, ratio

COMMAND = "make paper-prompts"
# A step of recipes/grpo-arithmetic.yaml, whose prompts have 50 tokens.
PROMPTS, COMPLETIONS, PROMPT, COMPLETION = 8, 8, 50, 16
TURNS = 3


def compare() -> None:
    """Both ways in turns; prints and keeps the ratio, and how far their results lie apart."""
    from bmt_trainer.attach import attach
    from bmt_trainer.models import load_model
    from bmt_trainer.shared_prompts import SharedPrompts
    from trl.trainer.utils import add_fused_lm_head

    model = load_model(demo_model())
    attached = attach(model)
    attached.state.alpha = 1e3
    torch.manual_seed(0)
    for gate in attached.gates():
        gate.data.normal_(0.03, 0.01)
    add_fused_lm_head(model)
    ways: dict[str, Callable[..., Any]] = {
        "whole": model,
        "shared": SharedPrompts(model, model.config, attached.state, PROMPT),
    }
    rows = _rows(model.config.vocab_size)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    gradients: dict[str, list[Tensor]] = {}
    for turn in range(TURNS + 1):  # the first warms up
        for way in ways if turn % 2 else reversed(ways):
            for gate in attached.gates():
                gate.grad = None
            start = time.perf_counter()
            ways[way](**rows, fused_lm_head=True).log_probs.sum().backward()
            seconds[way].append(time.perf_counter() - start)
            gradients[way] = [gate.grad for gate in attached.gates() if gate.grad is not None]
    pairs = zip(seconds["shared"][1:], seconds["whole"][1:], strict=True)
    found = estimate([[a / b] for a, b in pairs])
    apart = max(
        float((a - b).norm() / a.norm())
        for a, b in zip(gradients["whole"], gradients["shared"], strict=True)
    )
    keep([ratio("loss_time_shared_over_whole", found, COMMAND)])
    for way, spent in seconds.items():
        print(f"{way:7} {median(spent[1:]):6.2f} s")
    print(f"loss_time_shared_over_whole {found}; gradients {apart:.1e} apart, relative")


def _rows(vocabulary: int) -> dict[str, Tensor]:
    prompts = torch.randint(100, vocabulary, (PROMPTS, PROMPT)).repeat_interleave(COMPLETIONS, 0)
    completions = torch.randint(100, vocabulary, (len(prompts), COMPLETION))
    ids = torch.cat([prompts, completions], dim=1)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
