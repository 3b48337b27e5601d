"""Timing of two computations in alternation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.models import load_model
from torch import Tensor

from benchmarks.harness.environment import demo_model
from benchmarks.harness.stats import Estimate, estimate, median

TURNS = 3


def masked_model() -> tuple[Any, Any]:
    """The demo's model with gates near their initial values, at SFT's last sharpness, 1e3."""
    model = load_model(demo_model())
    attached = attach(model)
    attached.state.alpha = 1e3
    for gate in attached.gates():
        torch.nn.init.normal_(gate, 0.03, 0.01)
    return model, attached


def first_over_second(ways: Mapping[str, Callable[[], object]]) -> Estimate:
    """Ratio of the time of the first computation to that of the second."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):  # the first is a warm-up
        for way in ways if turn % 2 else reversed(list(ways)):
            start = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - start)
    first, second = (spent[1:] for spent in seconds.values())
    for way, spent in seconds.items():
        print(f"{way:7} {median(spent[1:]):6.2f} s")
    return estimate([[a / b] for a, b in zip(first, second, strict=True)])


def first_loss_over_second(
    ways: Mapping[str, Callable[[], Tensor]], parameters: Sequence[Tensor]
) -> Estimate:
    """The ratio for two losses and their backward passes; prints the gradients' difference."""
    gradients: dict[str, list[Tensor]] = {}

    def backward(way: str) -> None:
        for parameter in parameters:
            parameter.grad = None
        ways[way]().backward()
        gradients[way] = [p.grad for p in parameters if p.grad is not None]

    time_ratio = first_over_second({way: partial(backward, way) for way in ways})
    pairs = [gradients[way] for way in ways]
    difference = max(float((a - b).norm() / b.norm()) for a, b in zip(*pairs, strict=True))
    print(f"gradients differ by {difference:.1e}, relative")
    return time_ratio
