"""Dequantized gates against the libraries that read each format."""

from __future__ import annotations

import json

import pytest
import torch
from bmt_server.quantization import codes
from bmt_server.quantization.codes import UnsupportedCodesError
from bmt_server.quantization.dequantize import dequantize
from bmt_server.quantization.reader import GateReader
from safetensors.torch import load_file, save_file

from tests.support.quantized.copies import KINDS, library_weights, quantize
from tests.support.tiny_model import save_tiny_llama

SHAPE = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("base") / "model", torch.bfloat16, **SHAPE)


def parts_of(folder):
    module = GATE.removesuffix(".weight") + "."
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix(module): t for name, t in tensors.items() if name.startswith(module)}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_formats_own_library(base, tmp_path, kind):
    folder = quantize(base, tmp_path / "q", kind)
    gates = codes.quantized_gates(folder)
    assert {name: gate.shape for name, gate in gates.items()} == {GATE: (128, 128)}
    ours = GateReader(folder, quantized=True).rows(GATE, 0, 128)
    assert torch.equal(ours, library_weights(kind, parts_of(folder)))
    original = GateReader(base, quantized=False).rows(GATE, 0, 128)
    assert 0 < float((ours - original).norm() / original.norm()) < 0.15
    assert torch.equal(GateReader(folder, quantized=True).rows(GATE, 16, 48), ours[16:48])


def test_rows_of_a_fused_projection_are_the_gates(base, tmp_path):
    folder = quantize(base, tmp_path / "q", "int8")
    tensors = load_file(folder / "model.safetensors")
    fused = "model.layers.0.mlp.gate_up_proj"
    for part in ("weight", "weight_scale"):
        gate, up = (tensors.pop(f"model.layers.0.mlp.{p}_proj.{part}") for p in ("gate", "up"))
        tensors[f"{fused}.{part}"] = torch.cat([gate, up])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phi3"}))
    (name,) = codes.quantized_gates(folder)
    assert name == f"{fused}.weight[0:128]"
    whole = quantize(base, tmp_path / "whole", "int8")
    expected = GateReader(whole, quantized=True).rows(GATE, 8, 24)
    assert torch.equal(GateReader(folder, quantized=True).rows(name, 8, 24), expected)


def test_gptq_that_no_engine_serves_is_refused(base, tmp_path):
    def shuffled(_, parts):
        return {**parts, "g_idx": parts["g_idx"].flip(0)}

    def with_zeros(_, parts):
        return {**parts, "qzeros": parts["qzeros"] + 1}

    for change, word in ((shuffled, "desc_act"), (with_zeros, "sym false")):
        folder = quantize(base, tmp_path / word, "gptq", change)
        with pytest.raises(UnsupportedCodesError, match=word):
            GateReader(folder, quantized=True).rows(GATE, 0, 128)


def test_a_zero_point_of_int8_counts(base, tmp_path):
    folder = quantize(base, tmp_path / "q", "int8")
    (gate,) = codes.quantized_gates(folder).values()
    parts = parts_of(folder)
    zero = torch.arange(128, dtype=torch.int8)[:, None]
    shifted = dequantize(gate, {**parts, "weight_zero_point": zero})
    plain = dequantize(gate, parts)
    assert torch.allclose(shifted, plain - zero.float() * parts["weight_scale"])
