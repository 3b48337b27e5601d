"""Names of vLLM's fused projections in the checkpoint, and the layers that are no gates of text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bmt_server.settings import Settings
from bmt_server.worker.engine_vllm.gate_projections import (
    MaskedLinearMethod,
    UnsupportedModelError,
    check_names,
    checkpoint_names,
    fused_projections,
    gate_layer,
    keep_base_rows,
)
from bmt_server.worker.kernels.masked_delta import op_for
from bmt_server.worker.runtime import MaskRuntime
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.models.utils import WeightsMapper

from tests.support.worker import COLS, MIXES, gates, laid_out, random_mask

R, K = 6, 4


class Fused(torch.nn.Module):
    """vLLM's fused gate and up projection of one rank, by the attributes that are read."""

    def __init__(self, prefix: str, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.prefix, self.tp_rank, self.tp_size = prefix, rank, ranks
        self.output_partition_sizes = [R // ranks, R // ranks]
        self.quant_method = UnquantizedLinearMethod()
        self.weight = torch.nn.Parameter(torch.randn(2 * R // ranks, K))


def model_of(prefixes, mapper=None):
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(Fused(prefix) for prefix in prefixes)
    if mapper is not None:
        model.hf_to_vllm_mapper = mapper
    return model


def names_of(model, known):
    names = checkpoint_names(model, known)
    return [gate_layer(fused, names).name for fused in fused_projections(model)]


# The prefixes of vLLM 0.32, gemma3_mm.py.
GEMMA3 = WeightsMapper(
    orig_to_new_prefix={
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
    }
)
# Qwen's hybrid models: shards are stacked by the mapper.
STACKED = WeightsMapper(
    orig_to_new_prefix={"model.language_model.": "language_model.model."},
    orig_to_new_stacked={".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)},
)


@pytest.mark.parametrize(
    ("prefix", "name", "mapper"),
    [
        ("model.layers.0.mlp", "model.layers.0.mlp.gate_proj.weight", None),
        ("model.layers.0.mlp", f"model.layers.0.mlp.gate_up_proj.weight[0:{R}]", None),
        *(
            ("language_model.model.layers.0.mlp", name, mapper)
            for mapper in (GEMMA3, STACKED)
            for name in (
                "model.language_model.layers.0.mlp.gate_proj.weight",
                "language_model.model.layers.0.mlp.gate_proj.weight",
                f"model.language_model.layers.0.mlp.gate_up_proj.weight[0:{R}]",
            )
        ),
    ],
)
def test_gates_have_the_checkpoints_names(prefix, name, mapper):
    model = model_of([f"{prefix}.gate_up_proj"], mapper)
    assert names_of(model, {name: (R, K)}) == [name]


def test_rows_of_a_rank_are_counted_within_the_gate():
    names = {"a.mlp.gate_up_proj": f"a.mlp.gate_up_proj.weight[0:{R}]"}
    for rank in (0, 1):
        fused = Fused("a.mlp.gate_up_proj", rank, 2)
        gate = gate_layer(fused, names)
        assert gate.rows == (rank * R // 2, (rank + 1) * R // 2)
        assert gate.name == f"a.mlp.gate_up_proj.weight[0:{R}]"
        assert torch.equal(gate.base, fused.weight[: R // 2])


@pytest.mark.parametrize(("ranks", "kept"), [(1, False), (1, True), (2, False)])
def test_a_projection_that_vllm_keeps_in_one_part(ranks, kept):
    """Of vLLM's models of transformers' code: the gate is the first half, on one rank."""
    prefix, name = "a.mlp.gate_up_proj", f"a.mlp.gate_up_proj.weight[0:{R}]"
    fused = Fused(prefix, 0, ranks)
    fused.output_partition_sizes = [2 * R // ranks]
    if kept:
        keep_base_rows(fused, fused.weight.data.clone())
    if ranks > 1:
        with pytest.raises(UnsupportedModelError, match="serve it on one rank"):
            gate_layer(fused, {prefix: name}, {name: (R, K)})
        return
    gate = gate_layer(fused, {prefix: name}, {name: (R, K)})
    assert (gate.rows, gate.shape) == ((0, R), (R, K))
    assert torch.equal(gate.base, fused.weight[:R])


def test_other_rows_on_one_rank_are_not_mended_by_one_rank():
    prefix, name = "a.mlp.gate_up_proj", "a.mlp.gate_proj.weight"
    with pytest.raises(UnsupportedModelError, match="other gates") as error:
        gate_layer(Fused(prefix, 0, 1), {prefix: name}, {name: (R + 1, K)})
    assert "one rank" not in str(error.value)


def test_a_vision_tower_has_no_gates_of_text():
    text = "language_model.model.layers.0.mlp.gate_up_proj"
    for tower in ("vision_tower.blocks.0.mlp", "visual.blocks.0.mlp", "vision_encoder.a.mlp"):
        model = model_of([text, f"{tower}.gate_up_proj"])
        assert [m.prefix for m in fused_projections(model)] == [text]


def test_other_rows_of_a_tensor_are_no_gate_of_vllms():
    """Of a checkpoint that stores the gate elsewhere, nothing is taken for it."""
    known = {f"model.layers.0.mlp.gate_up_proj.weight[{R}:{2 * R}]": (R, K)}
    model = model_of(["model.layers.0.mlp.gate_up_proj"])
    gates = [gate_layer(f, checkpoint_names(model, known)) for f in fused_projections(model)]
    with pytest.raises(UnsupportedModelError, match="is not in the checkpoint"):
        check_names(gates, SimpleNamespace(gates=known), 1)


def test_settings_carry_the_names_of_rows_to_the_workers():
    gates = {"model.layers.0.mlp.gate_up_proj.weight[0:8]": (8, 4)}
    settings = Settings(model_id="m", model_path="/m", fingerprint="ab" * 32, gates=gates)
    assert Settings.from_json(settings.to_json()).gates == gates


class Product:
    """vLLM's product of a layer whose weight is the gate alone."""

    def apply(self, layer, x, bias):
        return torch.nn.functional.linear(x, layer)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_batch_of_one_before_the_tokens_gets_the_masks_of_the_tokens(
    tmp_path, monkeypatch, compiled
):
    """vLLM's models of transformers' code pass [1, T, K]: the delta is that of [T, K]."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    (gate,) = gates(1)
    runtime = MaskRuntime([gate], "delta", 1 << 20)
    for i in (1, 2):
        runtime.add(i, f"m{i}", laid_out(random_mask(i, layers=1), tmp_path))
    runtime.begin_step(MIXES["with base"](5, 2))
    method = MaskedLinearMethod(Product(), op_for(torch.device("cpu"), *runtime.handles()))
    apply = torch.compile(method.apply) if compiled else method.apply
    x = torch.randn(5, COLS)
    with torch.inference_mode():
        flat, batched = method.apply(gate.base, x), apply(gate.base, x[None])
    assert not torch.equal(flat, x @ gate.base.T)
    torch.testing.assert_close(batched, flat[None])
