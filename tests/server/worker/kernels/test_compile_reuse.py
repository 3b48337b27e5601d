"""Compiled code of one layer serves all layers of the same shape."""

from __future__ import annotations

import pytest
import torch
from bmt_server.worker.engine_vllm.gate_projections import MaskedLinearMethod
from bmt_server.worker.kernels.masked_delta import op_for
from bmt_server.worker.runtime import MaskRuntime
from torch._dynamo.utils import counters

from tests.support.worker import COLS, MIXES, gates, laid_out, random_mask

LAYERS = 4


class Projection:
    """Stand-in for vLLM's product of one fused layer."""

    def apply(self, layer, x, bias):
        return torch.nn.functional.linear(x, layer)


@pytest.mark.found
@pytest.mark.parametrize(("device", "compiled"), [("cuda", 1), ("cpu", LAYERS)])
def test_identical_layers_are_compiled_once(tmp_path, monkeypatch, device, compiled):
    """Layers that differ only in weights and handle: one compilation, in the form for GPUs.

    There vLLM compiles layer by layer. The form for the CPU has the handle as a literal.
    """
    monkeypatch.setenv("BMT_KERNEL", "portable")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    layers = gates(LAYERS)
    runtime = MaskRuntime(layers, "delta", 1 << 20)
    masks = [random_mask(i, layers=LAYERS) for i in range(2)]
    for i, mask in enumerate(masks, 1):
        runtime.add(i, f"m{i}", laid_out(mask, tmp_path))
    runtime.begin_step(MIXES["with base"](5, 2))
    methods = [
        MaskedLinearMethod(Projection(), op_for(torch.device(device), h)) for h in runtime.handles()
    ]

    def layer(method):
        def forward(x, weight):
            y = method.apply(weight, x)
            return torch.mm(y, y.t())

        return forward

    counters.clear()
    x = torch.randn(5, COLS)
    with torch.inference_mode():
        for gate, method in zip(layers, methods, strict=True):
            torch._dynamo.reset()
            forward = layer(method)
            torch.testing.assert_close(torch.compile(forward)(x, gate.base), forward(x, gate.base))
    found = counters["inductor"]
    assert found["fxgraph_cache_miss"] == compiled
    assert found["fxgraph_cache_hit"] == LAYERS - compiled
