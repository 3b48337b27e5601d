"""Controls of a trained mask: other masks of the same gates, measured as it is.

A figure says something of training only if masks that were not trained have another one: the start
of Eq. 9, random places, the start's picks without its tail; and the deletions that training made.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np
import torch
from bmt_core import Mask, TensorMask
from bmt_trainer.evaluation import update_geometry
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.calibration import input_norms
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.methods import pipeline, sft
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.pipeline import Loaded
from bmt_trainer.settings import build

from benchmarks.harness.environment import demo_model
from reproduce import second_model
from reproduce.experiments.record import Figure, keep, percent
from reproduce.experiments.runs import begin, scored, settings_of

#: Measures of one mask by the end of the figures' ids, each with its n: tokens of the KL
#: divergence, matrices of the geometry.
Measures = Mapping[str, tuple[float, int]]


#: Masks of `_run`: those of the untrained gates, and those that need a trained mask.
UNTRAINED = ("start", "picks", "random_start")
TRAINED = ("trained", "learned", "random", "random_learned")
# Held-out examples of what was not trained, which answers none right, and of the second model.
_FEWER = 100
_LEARNT = ("trained", "learned")


def sorting() -> None:
    """Sorting by SFT on the demo's model."""
    _run(demo_model(), "", "make reproduce NAME=controls", (*UNTRAINED, *TRAINED))


def untrained_on_the_second_model() -> None:
    """The start and its controls on Qwen2.5-Coder-0.5B-Instruct, without training."""
    command = "make reproduce NAME=controls-qwen-start PAPER_DATA=FOLDER"
    _run(second_model.folder(), "_qwen", command, UNTRAINED, heldout=_FEWER)


def sorting_on_the_second_model() -> None:
    """The same run as on the demo's model, and the masks that need it."""
    command = "make reproduce NAME=controls-qwen PAPER_DATA=FOLDER"
    _run(second_model.folder(), "_qwen", command, TRAINED, heldout=_FEWER)


def _run(
    model: Path, suffix: str, command: str, names: Sequence[str], *, heldout: int = 400
) -> None:
    changes = {"model": str(model), "lean": "off", "checkpoint_every": 0, "heldout": heldout}
    trained = None
    if "trained" in names:
        settings = settings_of("sft-sort", f"controls{suffix}.bmt", **changes)
        trained = sft.train(build(SftConfig, settings))
    settings = settings_of("sft-sort", f"controls{suffix}-again.bmt", **changes)
    begun = begin(settings, _FEWER)
    loaded, attached = begun.loaded, begun.attached
    masks = _masks(loaded, attached, trained)
    for name in names:
        mask = masks[name]
        score, kl = scored(
            loaded, attached, name, mask, begun.texts, None if name in _LEARNT else _FEWER
        )
        measures = {"kl": (kl.per_token, kl.tokens), **_geometry(attached)}
        shown = ", ".join(f"{key} {value:.4g}" for key, (value, _) in measures.items())
        print(f"{name:14} {mask.zeros:8,} zeros: {shown}", flush=True)
        keep(_figures(f"controls{suffix}_{name}", mask, score, measures, command))
    shutil.rmtree(loaded.run.folder)


def _masks(loaded: Loaded, attached: Attached, trained: Mask | None) -> dict[str, Mask]:
    """The trained mask, if there is one, and controls; the starts are those of the run's seed."""
    config, made = loaded.config, dict[str, Mask]()
    norms = input_norms(loaded.model, attached, pipeline.calibration_batches(loaded))
    for name, tail in (("start", True), ("picks", False)):
        init_gates(
            attached,
            norms,
            eta=config.eta,
            mean=config.init_mean,
            std=config.init_std,
            tail=tail,
            seed=config.seed,
        )
        made[name] = pipeline.current_mask(loaded, attached)
    made["random_start"] = _random(attached, made["start"])
    if trained is not None:
        learned = bmt_core.difference(trained, made["start"])
        made |= {"trained": trained, "learned": learned, "random": _random(attached, trained)}
        made["random_learned"] = _random(attached, learned)
    return made


def _random(attached: Attached, mask: Mask) -> Mask:
    """As many random zeros in each tensor as `mask` has, of weights that are not 0."""
    generator = np.random.default_rng(0)
    layers = {attached.tensor(name): layer for name, layer in attached.layers.items()}
    tensors = []
    for tensor in mask.tensors:
        candidates = layers[tensor.name].gated_weight.flatten().nonzero().flatten().numpy()
        chosen = generator.choice(candidates, tensor.zeros, replace=False, shuffle=False)
        positions = np.sort(chosen).astype(tensor.positions.dtype)
        tensors.append(TensorMask(tensor.name, tensor.shape, positions))
    return replace(mask, tensors=tuple(tensors), metadata={})


@torch.no_grad()
def _geometry(attached: Attached) -> dict[str, tuple[float, int]]:
    """Means over the masked layers, and their number."""
    measured = []
    for layer in attached.layers.values():
        before = layer.gated_weight
        after = before.clone()
        after.view(-1)[layer.zero_positions()] = 0
        measured.append(("", update_geometry.measure(before, after)))
    means = update_geometry.summary(measured)["all"]
    keys = ("effective_rank", "spectrum_drift", "overlap")
    return {key: (means[key], len(measured)) for key in keys if means[key] is not None}


def _figures(
    prefix: str, mask: Mask, score: Mapping[str, Any], measures: Measures, command: str
) -> list[Figure]:
    """All that is kept of a mask."""
    right, total = score["exact"], score["total"]
    return [
        percent(f"{prefix}_accuracy", right / total, wilson(right, total), total, command),
        Figure(id=f"{prefix}_zeros", value=mask.zeros, n=len(mask.tensors), command=command),
        *(
            Figure(id=f"{prefix}_{key}", value=value, n=n, command=command)
            for key, (value, n) in measures.items()
        ),
    ]
