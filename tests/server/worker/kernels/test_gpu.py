"""Triton kernels on a real GPU, against a loop in float64 and inside CUDA graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels import reference
from bmt_server.worker.runtime import MaskRuntime

from tests.support.worker import MIXES, dense, gates, keep_of, laid_out, random_mask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPE, ZEROS, MASKS = (1500, 640), 4000, 5


def on_gpu(dtype: torch.dtype) -> list[GateLayer]:
    layers = []
    for gate in gates(shape=SHAPE, dtype=dtype):
        weight = gate.base.cuda()
        layers.append(GateLayer(gate.name, gate.rows, weight, weight))
    return layers


def made(folder, masks, dtype, mode="delta", graphs=0) -> MaskRuntime:
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    layers = on_gpu(dtype)
    kernel = TritonKernel(layers, memory_bytes=1 << 24, max_tokens=2048, graph_tokens=graphs)
    runtime = MaskRuntime(layers, mode, 1 << 24, kernel)
    for i, mask in enumerate(masks):
        runtime.add(i + 1, f"m{i}", laid_out(mask, folder))
    return runtime


def inputs(runtime: MaskRuntime, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] and y [T, 2R], whose gate part is the base's product."""
    gate = runtime.gates[0]
    x = torch.randn(tokens, SHAPE[1], device="cuda").to(gate.base.dtype)
    product = (x.double() @ gate.base.double().t()).to(gate.base.dtype)
    return x, torch.cat([product, torch.ones_like(product)], dim=1)


def error(y, before, x, runtime, masks, chosen) -> float:
    """Largest excess over one rounding, of each token's corrected row against float64."""
    unit = 2.0**-8 if y.dtype == torch.bfloat16 else 1e-6
    keep = {a: mask.cuda() for a, mask in keep_of(masks, 0).items()}
    weight = runtime.gates[0].base
    want = reference.masked_delta(before, x, weight, keep, chosen, dtype=torch.float64)
    return float(((y[:, : SHAPE[0]].double() - want).abs() - unit * want.abs()).max())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 33, 1100])
def test_delta_is_the_masked_product(tmp_path, mix, dtype, tokens):
    masks = [random_mask(i, shape=SHAPE, zeros=ZEROS) for i in range(MASKS)]
    runtime = made(tmp_path, masks, dtype)
    chosen = np.asarray(MIXES[mix](tokens, MASKS), np.int64)
    x, y = inputs(runtime, tokens)
    before = y.clone()
    runtime.begin_step(chosen)
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    assert error(y, before, x, runtime, masks, chosen) <= 1e-4
    assert torch.equal(y[:, SHAPE[0] :], before[:, SHAPE[0] :]), "the up projection is unchanged"
    base = torch.from_numpy(chosen == 0).cuda()
    assert torch.equal(y[base], before[base])


def test_a_graph_serves_every_mixture(tmp_path):
    masks = [random_mask(i, shape=SHAPE, zeros=ZEROS) for i in range(MASKS)]
    tokens = 48
    runtime = made(tmp_path, masks, torch.bfloat16, graphs=tokens)
    x, product = inputs(runtime, tokens)
    y = torch.empty_like(product)
    runtime.prepare_capture(tokens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y.copy_(product)
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    for mix in MIXES.values():
        chosen = np.asarray(mix(tokens, MASKS), np.int64)
        runtime.begin_step(chosen)
        graph.replay()
        assert error(y, product, x, runtime, masks, chosen) <= 1e-4
    runtime.begin_step(np.zeros(tokens, np.int64))
    graph.replay()
    assert torch.equal(y, product), "a step of base tokens keeps every bit"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switching_in_place_leaves_no_trace(tmp_path, dtype):
    masks = [random_mask(i, shape=SHAPE, zeros=ZEROS) for i in range(MASKS)]
    runtime = made(tmp_path, masks, dtype, mode="scatter")
    before = [gate.live.clone() for gate in runtime.gates]
    for adapter in (1, 2, 3, 1, 5):
        runtime.begin_step(np.full(4, adapter))
        for layer, gate in enumerate(runtime.gates):
            assert torch.equal(gate.live, before[layer] * dense(masks[adapter - 1], layer).cuda())
    runtime.begin_step(np.zeros(4, np.int64))
    for gate, was in zip(runtime.gates, before, strict=True):
        assert torch.equal(gate.live, was)
