"""Parts of a mask on a tiny model: nested, of their doses' sizes, in the order of the gates."""

from __future__ import annotations

import itertools

import bmt_core
import pytest
import torch

from reproduce import catalog
from reproduce.experiments import runs
from reproduce.experiments.parts import dose
from tests.support.tiny_model import save_tiny_llama

SMALL = {
    **{"steps": 2, "heldout": 4, "calibration_prompts": 4, "max_new_tokens": 4, "batch_size": 2},
    **{"device": "cpu", "train_examples": 8, "learning_rate": 0.02},
}


def test_parts_are_nested_and_give_the_figures_of_their_entry(tmp_path, monkeypatch):
    model = save_tiny_llama(tmp_path / "m", torch.bfloat16)
    kept, seen = [], {}
    settings_of, masks_of = dose.settings_of, dose.masks

    def settings(recipe, name, **changes):
        return {**settings_of(recipe, name, **changes), **SMALL, "output": tmp_path / name}

    def remembered(attached, mask, first):
        seen["margins"] = {
            attached.tensor(name): -layer.gate_logits.detach().flatten()
            for name, layer in attached.layers.items()
        }
        seen["masks"] = masks_of(attached, mask, first)
        return seen["masks"]

    monkeypatch.setattr(dose, "settings_of", settings)
    monkeypatch.setattr(dose, "masks", remembered)
    monkeypatch.setattr(dose, "keep", kept.extend)
    monkeypatch.setattr(dose, "LATEST", tmp_path)
    (tmp_path / "paper").mkdir()
    monkeypatch.setattr(runs, "demo_model", lambda: model)
    dose.sorting()

    [entry] = [e for e in catalog.entries() if e.name == "dose"]
    assert {figure.id for figure in kept} == set(entry.figures)
    assert len(kept) == len(entry.figures)
    assert (tmp_path / "paper" / "dose.png").stat().st_size > 1000
    masks = seen["masks"]
    for order in dose.ORDERS:
        parts = [*(masks[f"{order}_{one}"] for one in dose.DOSES), masks["all"]]
        for small, large in itertools.pairwise(parts):
            assert bmt_core.difference(small, large).zeros == 0
        assert [part.zeros for part in parts[:-1]] == [
            pytest.approx(masks["all"].zeros * one / 100, abs=0.5) for one in dose.DOSES
        ]
    first = masks["margin_20"]
    rest = bmt_core.difference(masks["all"], first)

    def margins(mask):
        return [
            float(value)
            for tensor in mask.tensors
            for value in seen["margins"][tensor.name][
                torch.from_numpy(tensor.positions.astype("i8"))
            ]
        ]

    assert min(margins(first)) >= max(margins(rest))
    assert masks["margin_60"].digest != masks["moved_60"].digest != masks["random_60"].digest
