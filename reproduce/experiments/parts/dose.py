"""Parts of a trained mask: accuracy and KL divergence against the share of its deletions.

The parts of one order are nested: each has the deletions of all smaller ones. The orders are those
of the gate's margin below 0, of how far training moved the gate down, and of chance.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from bmt_core import Mask, TensorMask
from bmt_trainer.comparison import plot_style
from bmt_trainer.console import hide_library_progress
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.evaluation.kl import Divergence
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline, schedules, sft
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.settings import build

from benchmarks.report.results import LATEST
from reproduce.experiments.record import Figure, keep, percent
from reproduce.experiments.runs import begin, scored, settings_of

COMMAND = "make reproduce NAME=dose"
#: Shares of the deletions, in percent; all of them is one mask, whatever the order.
DOSES = (20, 40, 60, 80)
ORDERS = ("margin", "moved", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the mask, measured."""

    zeros: int
    right: int
    total: int
    kl: Divergence


def sorting() -> None:
    """Sorting by SFT on the demo's model, and parts of its mask."""
    settings = settings_of("sft-sort", "dose.bmt", lean="off", checkpoint_every=0)
    begun = begin(settings)
    loaded, attached = begun.loaded, begun.attached
    with hide_library_progress():
        pipeline.initialize(loaded, attached)
        first = [gates.detach().clone() for gates in attached.gates()]
        config = schedules.of_run(build(SftConfig, settings), loaded)
        sft.fit(config, loaded, attached, begun.rows)
    parts = {}
    for name, mask in masks(attached, pipeline.current_mask(loaded, attached), first).items():
        score, kl = scored(loaded, attached, name, mask, begun.texts)
        part = Part(zeros=mask.zeros, right=score["exact"], total=score["total"], kl=kl)
        print(f"{name:12} {part.zeros:8,} zeros: {part.right} right, KL {kl.per_token:.4g}")
        keep(_figures(f"dose_{name}", part))
        parts[name] = part
    (LATEST / "paper" / "dose.png").write_bytes(plot_style.png(_plot(parts)))
    shutil.rmtree(loaded.run.folder)


def masks(attached: Attached, mask: Mask, first: list[torch.Tensor]) -> dict[str, Mask]:
    """The mask and its parts by order and dose; first: the gates before training."""
    layers = zip(attached.layers.items(), first, strict=True)
    by_tensor = {attached.tensor(name): (layer, start) for (name, layer), start in layers}
    generator = np.random.default_rng(0)
    keys: dict[str, list[np.ndarray]] = {order: [] for order in ORDERS}
    for tensor in mask.tensors:
        layer, start = by_tensor[tensor.name]
        at = torch.from_numpy(tensor.positions.astype("int64"))
        gates = layer.gate_logits.detach().flatten()[at]
        keys["margin"].append((-gates).numpy())
        keys["moved"].append((start.flatten()[at] - gates).numpy())
        keys["random"].append(generator.random(tensor.zeros))
    made = {"all": mask}
    for order in ORDERS:
        # Ranks over all tensors, the greatest first: a stable sort, so that ties are nested too.
        ranks = np.argsort(np.argsort(-np.concatenate(keys[order]), kind="stable"))
        for dose in DOSES:
            made[f"{order}_{dose}"] = _part(mask, ranks < round(mask.zeros * dose / 100))
    return made


def _part(mask: Mask, chosen: np.ndarray) -> Mask:
    """The deletions that are chosen, in the order of tensors and positions."""
    ends = np.cumsum([tensor.zeros for tensor in mask.tensors])[:-1]
    tensors = [
        TensorMask(tensor.name, tensor.shape, tensor.positions[own])
        for tensor, own in zip(mask.tensors, np.split(chosen, ends), strict=True)
    ]
    return replace(mask, tensors=tuple(tensors), metadata={})


def _figures(prefix: str, part: Part) -> list[Figure]:
    interval = wilson(part.right, part.total)
    return [
        percent(f"{prefix}_accuracy", part.right / part.total, interval, part.total, COMMAND),
        Figure(id=f"{prefix}_zeros", value=part.zeros, n=part.total, command=COMMAND),
        Figure(id=f"{prefix}_kl", value=part.kl.per_token, n=part.kl.tokens, command=COMMAND),
    ]


def _plot(parts: Mapping[str, Part]) -> object:
    """Accuracy and KL divergence against the dose, a line for each order."""
    figure, axes = plot_style.load_pyplot().subplots(2, 1, figsize=(5, 6), layout="constrained")
    labels = {"margin": "gate's margin", "moved": "moved by training", "random": "random"}
    for order in ORDERS:
        chosen = [parts[f"{order}_{dose}"] for dose in DOSES] + [parts["all"]]
        shares = [100 * part.right / part.total for part in chosen]
        for axis, values in zip(axes, (shares, [p.kl.per_token for p in chosen]), strict=True):
            axis.plot([*DOSES, 100], values, marker="o", label=labels[order])
    for axis, text in zip(axes, ("accuracy, %", "KL from the base, nats a token"), strict=True):
        axis.set_ylabel(text)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].set_xlabel("share of the mask's deletions, %")
    axes[0].legend()
    return figure
