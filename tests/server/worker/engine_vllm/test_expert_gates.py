"""Layers of experts: the order of their weights in vLLM, and what masks make of a step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bmt_server.worker.engine_vllm.expert_gates import expert_layers, kept_gates
from bmt_server.worker.engine_vllm.gate_projections import UnsupportedModelError
from bmt_server.worker.engine_vllm.masked_experts import MaskedExperts
from bmt_server.worker.kernels.masked_delta import op_for
from bmt_server.worker.kernels.portable import PortableKernel
from bmt_server.worker.runtime import MaskRuntime
from torch.nn.functional import silu
from vllm._custom_ops import cpu_prepack_moe_weight

from tests.support import masks
from tests.support.worker import laid_out

E, F, K, T = 4, 48, 32, 7
PLACE = "model.layers.0.mlp.experts"
KNOWN = {f"{PLACE}.{e}.gate_proj.weight": (F, K) for e in range(E)}


class Layer(torch.nn.Module):
    """vLLM's layer of experts, by the attributes that are read."""

    def __init__(self, dtype: torch.dtype = torch.float32, **changes) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w13_weight = torch.nn.Parameter(torch.randn(E, 2 * F, K, generator=draw).to(dtype))
        self.w2_weight = torch.nn.Parameter(torch.randn(E, K, F, generator=draw).to(dtype))
        self.layer_name, self.use_ep, self.expert_map = PLACE, False, None
        self.swiglu_limit, self.apply_router_weight_on_input = None, False
        self.activation = SimpleNamespace(value="silu")
        parallel = SimpleNamespace(enable_eplb=False, is_sequence_parallel=False)
        self.moe_config = SimpleNamespace(
            **{"moe_parallel_config": parallel, "has_bias": False, "tp_rank": 0},
            **dict.fromkeys(("dp_size", "pcp_size", "tp_size"), 1),
        )
        self.seen: list[dict] = []
        self.quant_method = SimpleNamespace(is_monolithic=False, apply=self.own)
        for name, value in changes.items():
            vars(self)[name] = value

    def own(self, **arguments):
        self.seen.append(arguments)
        return arguments["x"] + 1


def as_loaded(layer: Layer) -> None:
    """No repacking, as on GPUs."""


def in_order(isa: str):
    """vLLM's repacking, with its padding to 64 features."""

    def repack(layer: Layer) -> None:
        padded = torch.zeros(E, 128, K, dtype=layer.w13_weight.dtype)
        padded[:, :F], padded[:, 64 : 64 + F] = layer.w13_weight[:, :F], layer.w13_weight[:, F:]
        wide = torch.zeros(E, K, 64, dtype=padded.dtype)
        wide[:, :, :F] = layer.w2_weight
        for name, weight in (("w13_weight", padded), ("w2_weight", wide)):
            packed = cpu_prepack_moe_weight(weight, isa)
            setattr(layer, name, torch.nn.Parameter(packed, requires_grad=False))

    return repack


def loaded(repack=as_loaded, **changes) -> Layer:
    layer = Layer(**changes).requires_grad_(False)
    with kept_gates(layer):
        repack(layer)
    return layer


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [
        ("", torch.float32),
        ("vec", torch.float32),
        ("vec", torch.bfloat16),
        ("amx", torch.bfloat16),
    ],
)
def test_weights_are_read_in_the_order_that_vllm_left_them_in(isa, dtype):
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU has no AMX, and vLLM's order for it cannot be made here")
    before = Layer(dtype)
    layer = loaded(in_order(isa) if isa else as_loaded, dtype=dtype)
    [found] = expert_layers(layer, KNOWN)
    for expert, gate in enumerate(found.gates):
        own = before.w13_weight[expert]
        assert (gate.name, gate.rows) == (f"{PLACE}.{expert}.gate_proj.weight", (0, F))
        assert torch.equal(gate.base, own[:F])
        assert torch.equal(found.up(expert), own[F:])
        assert torch.equal(found.down(expert), before.w2_weight[expert])


def test_an_order_that_is_not_known_is_refused():
    def shuffle(layer: Layer) -> None:
        layer.w13_weight.data = layer.w13_weight.data.flip(-1)

    with pytest.raises(UnsupportedModelError, match="in an order that masks do not know"):
        loaded(shuffle)


def test_a_replacement_that_vllm_does_not_repack_is_refused():
    """As vLLM 0.32 does on the CPU: new weights lie where the kernel reads another order."""
    layer = loaded(in_order("vec"))
    fresh = Layer().requires_grad_(False)
    layer.w13_weight, layer.w2_weight = fresh.w13_weight, fresh.w2_weight
    [found] = expert_layers(layer, KNOWN)
    assert not torch.equal(found.up(0), fresh.w13_weight[0, F:])
    with kept_gates(layer):
        pass
    [found] = expert_layers(layer, KNOWN)
    assert torch.equal(found.up(0), fresh.w13_weight[0, F:])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_ep": True}, "expert parallelism"),
        ({"swiglu_limit": 7.0}, "a limit of the activation"),
        ({"apply_router_weight_on_input": True}, "router weights on the input"),
        ({"activation": SimpleNamespace(value="swigluoai")}, "the activation swigluoai"),
    ],
)
def test_layers_that_compute_otherwise_are_refused(changes, says):
    with pytest.raises(UnsupportedModelError, match=f"{PLACE} has {says}"):
        expert_layers(loaded(**changes), KNOWN)


def test_experts_that_masks_do_not_name_stay_as_they_are():
    assert expert_layers(loaded(), {"model.layers.1.mlp.gate_proj.weight": (F, K)}) == []


def test_a_step_with_masks_is_each_tokens_masked_experts_and_any_other_is_vllms(tmp_path):
    layer = loaded(in_order("vec"))
    [experts] = expert_layers(layer, KNOWN)
    runtime = MaskRuntime(experts.gates, "delta", 1 << 20, PortableKernel(experts.gates))
    deltas = [op_for(torch.device("cpu"), handle) for handle in runtime.handles()]
    MaskedExperts(experts, deltas, lambda: runtime.corrects).hook()
    made = [masks.random_mask(KNOWN, seed, sparsity=0.2) for seed in (1, 2)]
    for adapter, mask in enumerate(made, 1):
        runtime.add(adapter, str(adapter), laid_out(mask, tmp_path))
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(T, K, generator=draw)
    weights, ids = torch.rand(T, E, generator=draw).topk(2)
    ids = ids.int()
    route = weights.clone(), ids.clone()

    def step(adapters):
        runtime.begin_step(np.array(adapters))
        return layer.quant_method.apply(
            layer=layer,
            x=x,
            topk_weights=weights,
            topk_ids=ids,
            shared_experts=None,
            shared_experts_input=None,
        )

    assert torch.equal(step([0] * T), x + 1)
    [seen] = layer.seen
    assert torch.equal(seen["topk_weights"], route[0])
    assert torch.equal(seen["topk_ids"], route[1])
    before = Layer()
    adapters = [1, 0, 2, 1, 2, 0, 1]
    found = step(adapters)
    assert len(layer.seen) == 1
    # The router's choice is what it was.
    assert torch.equal(weights, route[0])
    assert torch.equal(ids, route[1])
    expected = torch.zeros(T, K, dtype=torch.float64)
    for t, adapter in enumerate(adapters):
        for weight, e in zip(weights[t].tolist(), ids[t].tolist(), strict=True):
            gate, up = before.w13_weight[e].double().split(F)
            gate = gate.clone()
            if adapter:
                zeros = made[adapter - 1].tensors[e].positions.astype(np.int64)
                gate.view(-1)[torch.from_numpy(zeros)] = 0
            own = x[t].double()
            hidden = silu(gate @ own) * (up @ own)
            expected[t] += weight * (before.w2_weight[e].double() @ hidden)
    plain = step([1] * T)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(plain[1], found[1], atol=0.1)
    assert torch.equal(plain[0], found[0])
