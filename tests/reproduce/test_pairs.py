"""Two masks on a tiny model: what both have, and the parts that make each of them again."""

from __future__ import annotations

import bmt_core
import torch

from reproduce import catalog
from reproduce.experiments import runs
from reproduce.experiments.parts import pairs
from tests.support.tiny_model import save_tiny_llama

SMALL = {
    **{"steps": 2, "heldout": 4, "calibration_prompts": 4, "max_new_tokens": 4, "batch_size": 2},
    **{"device": "cpu", "train_examples": 8, "learning_rate": 0.02},
}


def test_parts_make_the_masks_again_and_give_the_figures_of_their_entry(tmp_path, monkeypatch):
    model = save_tiny_llama(tmp_path / "m", torch.bfloat16)
    kept, seen = [], []
    settings_of, of_task = pairs.settings_of, pairs.Pair.of_task

    def settings(recipe, name, **changes):
        return {**settings_of(recipe, name, **changes), **SMALL, "output": tmp_path / name}

    def remembered(self, task):
        seen.append(self)
        return of_task(self, task)

    monkeypatch.setattr(pairs, "SEEDS", (0, 1))
    monkeypatch.setattr(pairs, "settings_of", settings)
    monkeypatch.setattr(pairs, "keep", kept.extend)
    monkeypatch.setattr(pairs.Pair, "of_task", remembered)
    monkeypatch.setattr(runs, "demo_model", lambda: model)
    pairs.sorting_and_reversal()

    [entry] = [e for e in catalog.entries() if e.name == "pairs"]
    assert [figure.id for figure in kept] == entry.figures
    for pair in (seen[0], seen[-1]):
        first, second = pair.masks.values()
        assert first.digest != second.digest
        assert 0 < pair.common.zeros < min(first.zeros, second.zeros)
        assert pair.stack.zeros == first.zeros + second.zeros - pair.common.zeros
        for mask in (first, second):
            rest = bmt_core.difference(mask, pair.common)
            assert bmt_core.union(rest, pair.common).digest == mask.digest
    values = {figure.id: figure for figure in kept}
    assert values["pairs_zeros"].seeds == (0, 1)
    assert values["pairs_common_zeros"].value == (
        (seen[0].common.zeros + seen[-1].common.zeros) / 2
    )
