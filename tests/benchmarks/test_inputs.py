"""Inputs of the benchmarks: random masks, LoRA adapters, a masked checkpoint."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import inputs
from benchmarks.suites.file import _pack, _unpack, entropy_bits


@pytest.fixture
def model(tmp_path):
    """A checkpoint with one block's projections, small."""
    shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    weights = {
        f"model.layers.0.mlp.{name}.weight": torch.randn(shape).bfloat16()
        for name, shape in shapes.items()
    }
    weights |= {
        f"model.layers.0.self_attn.{name}_proj.weight": torch.randn(32, 32).bfloat16()
        for name in "qkvo"
    }
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_positions_are_distinct_sorted_and_as_many_as_asked():
    rng = np.random.default_rng(0)
    for numel, count in ((10_000, 1), (10_000, 20), (10_000, 5_000), (58_720_256, 117_440)):
        found = inputs.positions(numel, count, rng)
        assert found.dtype == np.uint32
        assert found.size == count
        assert (np.diff(found.astype(np.int64)) > 0).all()
        assert found[-1] < numel
    with pytest.raises(ValueError, match="sparse masks"):
        inputs.positions(10, 6, rng)


def test_positions_are_uniform():
    rng = np.random.default_rng(0)
    hits = np.zeros(100)
    for _ in range(2000):
        hits[inputs.positions(100, 30, rng)] += 1
    assert np.abs(hits / 2000 - 0.3).max() < 0.05


def test_masks_are_one_a_seed_and_made_once(model, tmp_path):
    first = inputs.masks(model, tmp_path / "masks", range(3), 0.01)
    loaded = [bmt_core.load(f, expect_base=bmt_core.fingerprint(model)) for f in first]
    assert len({m.digest for m in loaded}) == 3
    assert all(m.zeros == round(64 * 32 * 0.01) for m in loaded)
    times = [f.stat().st_mtime_ns for f in first]
    again = inputs.masks(model, tmp_path / "masks", range(4), 0.01)
    assert again[:3] == first
    assert [f.stat().st_mtime_ns for f in again[:3]] == times


@pytest.mark.parametrize("rank", [1, 8])
def test_adapters_are_pefts(model, tmp_path, rank):
    """peft reads the configuration, and the weights are those that it would have written."""
    from peft import LoraConfig, PeftConfig

    first, second = inputs.lora_adapters(model, tmp_path / "lora", 2, rank)
    config = PeftConfig.from_pretrained(str(first))
    assert isinstance(config, LoraConfig)
    assert (config.r, set(config.target_modules)) == (rank, set(inputs.PROJECTIONS))
    weights = load_file(first / "adapter_model.safetensors")
    assert len(weights) == 14
    stem = "base_model.model.model.layers.0.mlp.down_proj"
    assert weights[f"{stem}.lora_A.weight"].shape == (rank, 64)
    assert weights[f"{stem}.lora_B.weight"].shape == (32, rank)
    other = load_file(second / "adapter_model.safetensors")
    assert not torch.equal(weights[f"{stem}.lora_A.weight"], other[f"{stem}.lora_A.weight"])


def test_the_masked_checkpoint_is_the_base_with_zeros(model, tmp_path):
    (file,) = inputs.masks(model, tmp_path / "masks", [0], 0.05)
    mask = bmt_core.load(file)
    folder = inputs.masked_checkpoint(model, mask, tmp_path / "masked")
    before, after = (load_file(f / "model.safetensors") for f in (model, folder))
    (tensor,) = mask.tensors
    for name, weight in before.items():
        wanted = weight.clone().view(-1)
        if name == tensor.name:
            wanted[tensor.positions.astype(np.int64)] = 0
        assert torch.equal(after[name].view(-1), wanted)
    assert (folder / "config.json").exists()


def test_the_plain_form_of_a_file_holds_the_same_positions():
    tensor = bmt_core.TensorMask("t", (8, 16), np.array([0, 5, 127], np.uint32))
    assert _unpack(_pack(tensor)).tolist() == [0, 5, 127]


def test_the_entropy_bound():
    assert entropy_bits(4, 2) == pytest.approx(np.log2(6))
    assert entropy_bits(100, 0) == pytest.approx(0, abs=1e-9)
