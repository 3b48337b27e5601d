"""Training runs of recipes, and the figures of lean masks that each run reports."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmt_core import Mask
from bmt_trainer.comparison import plot_style, plots
from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.evaluation.kl import Divergence, forward_kl
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import grpo, pipeline, sdft, sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.finish import base_texts
from bmt_trainer.methods.pipeline import Loaded, Rows
from bmt_trainer.methods.preferences import dpo, kto
from bmt_trainer.settings import build, read_yaml

from benchmarks.harness.environment import ROOT, WORK, demo_model
from benchmarks.report.results import LATEST
from reproduce.experiments.record import Figure, keep, read_as


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """A finished run; seconds: since its last start; history: steps and validations, or empty."""

    mask: Mask
    seconds: float
    history: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, Any]:
        return dict(self.mask.metadata["scores"])

    def read(self, name: str) -> dict[str, Any]:
        """A score by the reading that training used."""
        return read_as(self.scores[name], self.mask.metadata["config"].get("reading", "strict"))


def settings_of(recipe: str, name: str, **changes: Any) -> dict[str, Any]:
    """Settings of `recipes/RECIPE.yaml` for the demo's model, with changes; name: mask file."""
    folder = WORK / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    own = {"model": str(demo_model()), "output": folder / name, "overwrite": True}
    return {**read_yaml(ROOT / "recipes" / f"{recipe}.yaml"), **own, **changes}


def run_recipe(recipe: str, **changes: Any) -> Ran:
    """Train by `recipes/RECIPE.yaml`, or resume an interrupted run."""
    name = changes.pop("output", f"{recipe}.bmt")
    settings = settings_of(recipe, name, resume=True, **changes)
    folder = settings["output"].parent
    start = time.monotonic()
    history: dict[str, Any] = {}
    if recipe.startswith("sft"):
        mask = sft.train(build(SftConfig, settings))
    elif recipe.startswith("dpo"):
        mask = dpo.train(build(DpoConfig, settings))
    elif recipe.startswith("kto"):
        mask = kto.train(build(KtoConfig, settings))
    elif recipe.startswith("sdft"):
        mask = sdft.train(build(SdftConfig, settings))
        history = json.loads((folder / f"{name}.history.json").read_text())
    else:
        mask = grpo.train(build(GrpoConfig, settings))
        history = json.loads((folder / f"{name}.history.json").read_text())
    ran = Ran(mask=mask, seconds=time.monotonic() - start, history=history)
    if history:
        stem = Path(name).stem
        target = LATEST / "paper" / f"{stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        figure = plots.training({stem: history}, f"{stem}, {ran.seconds / 60:.1f} minutes")
        target.write_bytes(plot_style.png(figure))
    return ran


@dataclass(frozen=True)
class Begun:
    """A run of SFT that has not trained; texts: what the base answers, as `scored` takes them."""

    loaded: Loaded
    attached: Attached
    rows: Rows
    texts: list[tuple[list[int], list[int]]]


def begin(settings: Mapping[str, Any], heldout: int | None = None) -> Begun:
    """Start a run of SFT with gates, and score its base.

    settings: as `settings_of` has them; an unfinished run is removed. heldout: examples to score
    the base on, by default all.
    """
    output = settings["output"]
    shutil.rmtree(output.with_name(output.name + ".run"), ignore_errors=True)
    with hide_library_progress():
        loaded, rows = sft.load(build(SftConfig, settings), Display())
        attached = pipeline.attach(loaded)
        with attached.state.use("off"):
            loaded.score("base", loaded.split.heldout[:heldout])
            return Begun(loaded, attached, rows, base_texts(loaded))


def scored(
    loaded: Loaded,
    attached: Attached,
    name: str,
    mask: Mask,
    texts: list[tuple[list[int], list[int]]],
    heldout: int | None = None,
) -> tuple[dict[str, Any], Divergence]:
    """The score of a mask of the run's gates, noted by its name, and its KL divergence.

    texts: what the base answers, as `finish.base_texts` has them; heldout: examples to score, by
    default all. The gates are the mask's then.
    """
    attached.load_mask(mask)
    with attached.state.use("hard"):
        loaded.score(name, loaded.split.heldout[:heldout])
    kl = forward_kl(loaded.model, attached, texts, loaded.tokenizer.pad_token_id)
    return loaded.run.notes[name], kl


def report(ran: Ran, suffix: str, command: str) -> None:
    """Print a run's scores; keep and print the ratios of its lean mask to the full one.

    suffix: of the figures' ids.
    """
    for name in ran.scores:
        score = ran.read(name)
        low, high = score["interval95"]
        print(f"{name:6} {score['accuracy']:6.1%} [{low:.1%}, {high:.1%}]")
    metadata = ran.mask.metadata
    if "zeros_lean" not in metadata:
        return
    kl = metadata["forward_kl"]
    ratios = {
        "lean_zeros_over_full": metadata["zeros_lean"] / metadata["zeros_full"],
        "lean_kl_over_full": kl["lean"]["per_token"] / kl["full"]["per_token"],
    }
    counts = (ran.scores["base"]["total"], kl["full"]["tokens"])
    keep(
        [
            Figure(id=f"{name}{suffix}", value=value, n=n, command=command)
            for (name, value), n in zip(ratios.items(), counts, strict=True)
        ]
    )
    print(
        f"lean {metadata['zeros_lean']:,} of {metadata['zeros_full']:,} zeros "
        f"({ratios['lean_zeros_over_full']:.3f}), forward KL {kl['lean']['per_token']:.4f} against "
        f"{kl['full']['per_token']:.4f} nats a token ({ratios['lean_kl_over_full']:.2f})"
    )
