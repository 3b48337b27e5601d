"""Controls of a mask on a tiny model, and the check of the second model's file."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.errors import ModelError

from reproduce import catalog, second_model
from reproduce.experiments import runs
from reproduce.experiments.parts import controls
from tests.support.tiny_model import save_tiny_llama

SMALL = {
    **{"steps": 2, "heldout": 4, "calibration_prompts": 4, "max_new_tokens": 4, "batch_size": 2},
    **{"device": "cpu", "train_examples": 8, "learning_rate": 0.02},
}


def test_controls_are_of_the_trained_mask_and_give_the_figures_of_their_entry(
    tmp_path, monkeypatch
):
    model = save_tiny_llama(tmp_path / "m", torch.bfloat16)
    kept, masks = [], {}
    settings_of, masks_of = controls.settings_of, controls._masks

    def settings(recipe, name, **changes):
        return {**settings_of(recipe, name, **changes), **SMALL, "output": tmp_path / name}

    def remembered(loaded, attached, trained):
        masks.update(masks_of(loaded, attached, trained))
        weights = {attached.tensor(n): layer for n, layer in attached.layers.items()}
        for tensor in masks["random_start"].tensors:
            flat = weights[tensor.name].gated_weight.flatten()
            assert (flat[tensor.positions.astype("int64")] != 0).all()
        return masks

    monkeypatch.setattr(controls, "settings_of", settings)
    monkeypatch.setattr(controls, "_masks", remembered)
    monkeypatch.setattr(controls, "keep", kept.extend)
    monkeypatch.setattr(runs, "demo_model", lambda: model)
    monkeypatch.setattr(controls, "demo_model", lambda: model)
    monkeypatch.setattr(controls.second_model, "folder", lambda: model)
    figures = {e.name: list(e.figures) for e in catalog.entries() if hasattr(e, "figures")}
    controls.untrained_on_the_second_model()
    assert [figure.id for figure in kept] == figures["controls-qwen-start"]
    kept.clear()
    controls.sorting_on_the_second_model()
    assert [figure.id for figure in kept] == figures["controls-qwen"]
    kept.clear()
    controls.sorting()
    assert [figure.id for figure in kept] == figures["controls"]
    by_id = {figure.id: figure for figure in kept}
    assert by_id["controls_trained_zeros"].value == masks["trained"].zeros
    assert masks["picks"].zeros < masks["start"].zeros < masks["trained"].zeros
    assert masks["trained"].zeros - masks["start"].zeros <= masks["learned"].zeros
    randoms = {"random": "trained", "random_learned": "learned", "random_start": "start"}
    for random, of in randoms.items():
        counts = [[tensor.zeros for tensor in masks[name].tensors] for name in (random, of)]
        assert counts[0] == counts[1]
        assert masks[random].digest != masks[of].digest
    # Means over tokens, and over matrices.
    assert by_id["controls_trained_kl"].n > by_id["controls_trained_overlap"].n == 2


def test_another_file_is_not_the_second_model(tmp_path):
    (tmp_path / second_model.NAME).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="another quantization"):
        second_model.check(tmp_path / second_model.NAME)
