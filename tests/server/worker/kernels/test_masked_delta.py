"""The masked delta against the fp32 reference loop, over dtypes, sizes and tenant mixes."""

import numpy as np
import pytest
import torch
from bmt_server.worker.kernels import reference
from bmt_server.worker.runtime import MaskRuntime

from tests.support.worker import COLS, MIXES, ROWS, gates, keep_of, laid_out, random_mask

pytestmark = pytest.mark.usefixtures("each_kernel")


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("tokens", [1, 5, 32, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_is_the_masked_product(tmp_path, mix, tokens, dtype):
    masks = [random_mask(i) for i in range(6)]
    layers = gates(live=False, dtype=dtype)
    runtime = MaskRuntime(layers, "delta", 1 << 30)
    for i, mask in enumerate(masks):
        runtime.add(i + 1, f"m{i}", laid_out(mask, tmp_path))
    handles = runtime.handles()
    chosen = MIXES[mix](tokens, len(masks)).astype(np.int64)
    assert runtime.begin_step(chosen) == "corrected"
    x = torch.randn(tokens, COLS, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    for layer, gate in enumerate(layers):
        up = torch.ones(tokens, 5, dtype=dtype)
        y = torch.cat([(x.float() @ gate.base.float().t()).to(dtype), up], dim=1)
        torch.ops.bmt.masked_delta(y, x, handles[layer])
        want = reference.masked_product(x, gate.base, keep_of(masks, layer), chosen)
        # fp32: rounding of sums. bf16: the product and the result are each rounded once.
        bound = 1e-5 if dtype == torch.float32 else 2 * 2**-8 * float(want.abs().max())
        assert float((y[:, :ROWS].float() - want).abs().max()) <= bound
        assert torch.equal(y[:, ROWS:], up), "the up projection is unchanged"


def test_base_steps_leave_the_output_bit_identical(tmp_path):
    layers = gates(live=False)
    runtime = MaskRuntime(layers, "delta", 1 << 30)
    runtime.add(1, "m", laid_out(random_mask(0), tmp_path))
    handles = runtime.handles()
    runtime.begin_step(np.array([1, 1]))
    assert runtime.begin_step(np.array([0, 0, 0])) == "base"
    y = torch.randn(3, 2 * ROWS)
    before = y.clone()
    torch.ops.bmt.masked_delta(y, torch.randn(3, COLS), handles[0])
    assert torch.equal(y, before)


def test_base_tokens_among_masked_ones_are_bit_identical(tmp_path):
    layers = gates(live=False, dtype=torch.bfloat16)
    runtime = MaskRuntime(layers, "delta", 1 << 30)
    runtime.add(1, "m", laid_out(random_mask(0), tmp_path))
    handles = runtime.handles()
    runtime.begin_step(np.array([0, 1, 0]))
    x = torch.randn(3, COLS).bfloat16()
    y = (x.float() @ layers[0].base.float().t()).bfloat16()
    before = y.clone()
    torch.ops.bmt.masked_delta(y, x, handles[0])
    assert torch.equal(y[0], before[0])
    assert torch.equal(y[2], before[2])
    assert not torch.equal(y[1], before[1])


def test_a_token_has_the_same_result_in_every_batch(tmp_path):
    """fp32 sums run over a row's own zeros in a fixed order, so other tokens do not change them."""
    layers = gates(live=False)
    runtime = MaskRuntime(layers, "delta", 1 << 30)
    for i in range(16):
        runtime.add(i + 1, f"m{i}", laid_out(random_mask(i), tmp_path))
    handle = runtime.handles()[0]
    x = torch.randn(16, COLS)
    y = x @ layers[0].base.t()
    mixed = y.clone()
    runtime.begin_step(np.arange(1, 17))
    torch.ops.bmt.masked_delta(mixed, x, handle)
    for i in range(16):
        alone = y[i : i + 1].clone()
        runtime.begin_step(np.array([i + 1]))
        torch.ops.bmt.masked_delta(alone, x[i : i + 1], handle)
        assert torch.equal(alone[0], mixed[i])


def test_the_op_compiles(tmp_path):
    layers = gates(live=False)
    runtime = MaskRuntime(layers, "delta", 1 << 30)
    runtime.add(1, "m", laid_out(random_mask(0), tmp_path))
    handle = runtime.handles()[0]

    def forward(x):
        y = x @ layers[0].base.t()
        torch.ops.bmt.masked_delta(y, x, handle)
        return y * 2

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, COLS)
    for chosen in ([1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]):
        runtime.begin_step(np.array(chosen))
        torch.testing.assert_close(compiled(x), forward(x))
