"""Triton kernels in Triton's interpreter; `test_triton.py` runs this file in its own process.

Triton chooses the interpreter at import, hence the process. Programs run one after another on the
CPU with real addresses, so their reads and writes are those of a GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import bmt_core
import numpy as np
import pytest
import torch
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels import reference
from bmt_server.worker.kernels.triton import delta
from bmt_server.worker.kernels.triton import kernel as kernel_module
from bmt_server.worker.kernels.triton.kernel import KernelInputError, TritonKernel
from bmt_server.worker.resident_mask import NoRoomError, load_mask
from bmt_server.worker.runtime import MaskRuntime
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu.parts import Job
from tests.support.kernels.launches import record
from tests.support.worker import (
    BASE,
    MIXES,
    dense,
    gates,
    keep_of,
    laid_out,
    name,
    random_mask,
)

SHAPE = (70, 96)


def made(folder, masks, *, mode="delta", memory=1 << 20, tokens=512, graphs=0, layers=None, **gate):
    """A runtime on Triton's kernel, with masks under adapter ids 1, 2, …"""
    layers = layers or gates(**{"shape": SHAPE, **gate})
    kernel = TritonKernel(layers, memory_bytes=memory, max_tokens=tokens, graph_tokens=graphs)
    runtime = MaskRuntime(layers, mode, memory, kernel)
    for i, mask in enumerate(masks):
        runtime.add(i + 1, f"m{i}", laid_out(mask, folder))
    # A mask's first step copies it to the device; these tests begin after that.
    for adapter in range(1, len(masks) + 1):
        if runtime.store.resident(adapter):
            runtime.store.use([adapter])
    runtime.store.use(())
    return runtime


def inputs(runtime, tokens, layer=0, seed=0):
    """x [T, K] and y [T, 2R], whose gate part is the base's product."""
    gate = runtime.gates[layer]
    x = torch.randn(tokens, gate.shape[1], generator=torch.Generator().manual_seed(seed))
    x = x.to(gate.base.dtype)
    product = (x.float() @ gate.base.float().t()).to(gate.base.dtype)
    return x, torch.cat([product, torch.ones_like(product)], dim=1)


def expected(y, x, runtime, masks, chosen, layer=0):
    """The reference's result on this worker's rows: fp32 [T, R], not rounded."""
    gate = runtime.gates[layer]
    return reference.masked_delta(y, x, gate.base, keep_of(masks, layer, gate.rows), chosen)


def check(runtime, masks, chosen, layer=0, seed=0):
    chosen = np.asarray(chosen, np.int64)
    x, y = inputs(runtime, chosen.size, layer, seed)
    want, r = expected(y, x, runtime, masks, chosen, layer), runtime.gates[layer].shape[0]
    runtime.begin_step(chosen)
    before = y.clone()
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[layer])
    # One rounding: in bf16 a unit in the last place, because the interpreter truncates and a GPU
    # rounds (`test_triton.py` checks for the GPU's instruction); in fp32 the rounding of sums.
    unit = 2.0**-7 if y.dtype == torch.bfloat16 else 1e-6
    error = (y[:, :r].float() - want).abs()
    assert bool((error <= unit * want.abs() + 2e-5).all()), float(error.max())
    assert torch.equal(y[:, r:], before[:, r:]), "the up projection is unchanged"
    base = torch.from_numpy(chosen == 0)
    assert torch.equal(bits(y[base]), bits(before[base])), "base tokens keep every bit"


def go_in_place(runtime, chosen):
    """Run steps of one mask until `auto` puts it into the weights."""
    kinds = [runtime.begin_step(chosen) for _ in range(100)]
    assert kinds[-1] == "in_place"


def bits(tensor):
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_is_the_masked_product(tmp_path, mix, dtype):
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(5)]
    runtime = made(tmp_path, masks, dtype=dtype)
    for tokens in (1, 12):
        check(runtime, masks, MIXES[mix](tokens, len(masks)), layer=tokens % 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("chosen", "one_by_one"),
    [
        ([1] * 70, 70),
        ([2] * 32 + [0] * 5 + [1] * 65, 102),
        # The first tokens of mask 1 are in a tile with its last ones.
        ([1, 2, 0] * 4 + [3] * 64 + [1] * 31, 11),
        ([0] * 40 + [2] * 128, 0),
    ],
)
def test_long_runs_go_through_tiles(tmp_path, launches, chosen, one_by_one, dtype):
    masks = [random_mask(i, shape=SHAPE, zeros=250) for i in range(3)]
    runtime = made(tmp_path, masks, dtype=dtype)
    launches.clear()
    if dtype != torch.float16:
        check(runtime, masks, chosen)
    else:
        runtime.begin_step(np.array(chosen))
        x, y = inputs(runtime, len(chosen))
        want = expected(y, x, runtime, masks, chosen)
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
        torch.testing.assert_close(y[:, : SHAPE[0]].float(), want, rtol=2**-10, atol=1e-4)
    # Tokens outside of tiles and copies of tiles share a launch.
    assert [launch[0] for launch in launches] == ["correct", "correct_tiles"]
    assert launches[0][2][7] == one_by_one, "up to the last token that no tile holds"


def test_more_tiles_than_one_launch_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("bmt_server.worker.kernels.triton.kernel._COPIED_TOKENS", 128)
    masks = [random_mask(i, shape=(20, 32), zeros=60) for i in range(2)]
    for graphs in (0, 512):
        runtime = made(tmp_path, masks, shape=(20, 32), graphs=graphs)
        check(runtime, masks, [1] * 200 + [2] * 100 + [0, 1])


@pytest.mark.parametrize("r", [1, 63, 64, 65, 127, 129, 200])
@pytest.mark.parametrize("k", [8, 33])
def test_rows_that_fill_no_block(tmp_path, r, k):
    masks = [random_mask(i, shape=(r, k), zeros=max(r * k // 8, 1)) for i in range(2)]
    check(made(tmp_path, masks, shape=(r, k)), masks, [1, 2, 0, 2])
    check(made(tmp_path, masks, shape=(r, k)), masks, [2] * 34)


def test_programs_that_take_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delta, "PROGRAMS", 6)
    masks = [random_mask(i, shape=(600, 20), zeros=900) for i in range(2)]
    runtime = made(tmp_path, masks, shape=(600, 20))
    for chosen in ([1], [2, 0, 1], [0, 1, 2, 1, 0, 2, 0]):
        check(runtime, masks, chosen)


def test_layers_without_zeros(tmp_path):
    first = random_mask(0, layers=1, shape=SHAPE)
    nothing = bmt_core.Mask(base=BASE, tensors=(), metadata={})
    one_row = bmt_core.TensorMask(name(1), SHAPE, np.arange(96 * 3, 96 * 4, dtype=np.uint32))
    runtime = made(tmp_path, [first, nothing, bmt_core.Mask(BASE, (one_row,), {})])
    for layer in (0, 1):
        for chosen in ([1, 2, 3, 0], [1] * 33, [2] * 33):
            x, y = inputs(runtime, len(chosen), layer)
            want = y.clone()
            for t, adapter in enumerate(chosen):
                if (adapter, layer) == (1, 0):
                    gone = 1 - dense(first, 0)
                    want[t, : SHAPE[0]] -= (runtime.gates[0].base * gone) @ x[t]
                if (adapter, layer) == (3, 1):
                    want[t, 3] -= runtime.gates[1].base[3] @ x[t]
            runtime.begin_step(np.array(chosen))
            torch.ops.bmt.masked_delta(y, x, runtime.handles()[layer])
            torch.testing.assert_close(y, want, rtol=1e-5, atol=2e-5)


def test_a_block_of_more_zeros_than_16_bits_count(tmp_path):
    shape = (65, 1100)
    everything = np.arange(shape[0] * shape[1], dtype=np.uint32)
    full = bmt_core.Mask(BASE, (bmt_core.TensorMask(name(0), shape, everything),), {})
    runtime = made(tmp_path, [full], layers=gates(1, shape=shape))
    assert runtime.store.use([1])[1].layers[0].row_end.dtype == torch.int32
    for tokens in (2, 32):
        x, y = inputs(runtime, tokens)
        runtime.begin_step(np.ones(tokens))
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
        torch.testing.assert_close(y[:, :65], torch.zeros(tokens, 65), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["delta", "scatter"])
def test_more_columns_than_16_bits_count(tmp_path, mode):
    shape = (3, 70_000)
    masks = [random_mask(i, layers=1, shape=shape, zeros=40) for i in range(2)]
    runtime = made(tmp_path, masks, mode=mode, layers=gates(1, shape=shape))
    assert runtime.store.use([1])[1].layers[0].cols.dtype == torch.int32
    if mode == "delta":
        check(runtime, masks, [1, 2, 0])
        check(runtime, masks, [2] * 33)
    else:
        base = runtime.gates[0].base.clone()
        runtime.begin_step(np.array([2]))
        assert torch.equal(runtime.gates[0].live, base * dense(masks[1], 0))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_compute_the_output_of_one_worker(tmp_path, ranks):
    shape = (198, 40)
    masks = [random_mask(i, shape=shape, zeros=900) for i in range(2)]
    chosen = [1, 0, 2, 2]
    parts = []
    for rank in range(ranks):
        runtime = made(tmp_path, masks, shape=shape, rank=rank, ranks=ranks)
        check(runtime, masks, chosen)
        x, y = inputs(runtime, 4)
        runtime.begin_step(np.array(chosen))
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
        parts.append(y[:, : shape[0] // ranks])
    runtime = made(tmp_path, masks, shape=shape)
    x, y = inputs(runtime, 4)
    runtime.begin_step(np.array(chosen))
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    torch.testing.assert_close(torch.cat(parts, 1), y[:, : shape[0]])


def test_two_hundred_random_cases(tmp_path):
    rng = np.random.default_rng(5)
    for model in range(40):
        r, k = int(rng.integers(1, 140)), int(rng.integers(1, 60))
        masks = [
            random_mask(100 * model + i, layers=1, shape=(r, k), zeros=round(r * k * sparsity))
            for i, sparsity in enumerate(rng.choice([0.0, 0.01, 0.1, 0.6], rng.integers(1, 4)))
        ]
        dtype = (torch.float32, torch.bfloat16)[model % 2]
        runtime = made(tmp_path, masks, layers=gates(1, shape=(r, k), dtype=dtype))
        for case in range(5):
            chosen = rng.integers(0, len(masks) + 1, rng.integers(1, 5))
            if case == 0:
                chosen = np.repeat(chosen, rng.integers(1, 50, chosen.size))
            check(runtime, masks, chosen, seed=case)


def test_a_token_has_the_same_result_in_every_batch(tmp_path):
    masks = [random_mask(i, shape=SHAPE, zeros=300) for i in range(6)]
    runtime = made(tmp_path, masks)
    handle = runtime.handles()[0]
    x, y = inputs(runtime, 6)
    mixed = y.clone()
    runtime.begin_step(np.arange(1, 7))
    torch.ops.bmt.masked_delta(mixed, x, handle)
    for i in range(6):
        alone = y[i : i + 1].clone()
        runtime.begin_step(np.array([i + 1]))
        torch.ops.bmt.masked_delta(alone, x[i : i + 1], handle)
        assert torch.equal(alone[0], mixed[i])


def unusual_values(layers, shape, dtype):
    """Gates with values that compare unlike their bits: -0, NaN with payloads, inf."""
    made_gates = gates(layers, shape=shape, dtype=dtype)
    for gate in made_gates:
        pattern = torch.randint(-(2**15), 2**15, gate.live.shape, dtype=torch.int32)
        if dtype == torch.float32:
            pattern = pattern << 16
        bits(gate.live).copy_(pattern)
    return made_gates


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_base_is_restored_bit_for_bit_after_a_hundred_switches(tmp_path, dtype):
    masks = [random_mask(i, shape=SHAPE, zeros=700) for i in range(6)]
    runtime = made(tmp_path, masks, mode="scatter", layers=unusual_values(2, SHAPE, dtype))
    base = [bits(g.live).clone() for g in runtime.gates]
    rng = np.random.default_rng(0)
    for _ in range(100):
        adapter = int(rng.integers(0, 7))
        runtime.begin_step(np.full(2, adapter))
        for layer, gate in enumerate(runtime.gates):
            kept = torch.ones(SHAPE) if not adapter else dense(masks[adapter - 1], layer)
            assert torch.equal(bits(gate.live), base[layer] * kept.to(base[layer].dtype))
    runtime.begin_step(np.zeros(2))
    assert all(torch.equal(bits(g.live), b) for g, b in zip(runtime.gates, base, strict=True))


def test_one_mask_to_the_next_is_one_launch(tmp_path, launches):
    masks = [random_mask(i, shape=SHAPE, zeros=700) for i in range(2)]
    runtime = made(tmp_path, masks, mode="scatter")
    for adapter, switches in ((1, 1), (2, 1), (2, 0), (0, 1), (0, 0), (1, 1)):
        launches.clear()
        runtime.begin_step(np.array([adapter]))
        assert [launch[0] for launch in launches] == ["switch"] * switches


def test_auto_puts_a_mask_in_place_and_corrects_a_mix(tmp_path):
    masks = [random_mask(i, shape=SHAPE, zeros=100) for i in range(2)]
    runtime = made(tmp_path, masks, mode="auto")
    base = runtime.gates[0].base.clone()
    go_in_place(runtime, np.ones(3))
    x, y = inputs(runtime, 3)
    before = y.clone()
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    assert torch.equal(y, before), "the weights hold the mask, and the op changes nothing"
    assert runtime.begin_step(np.array([1, 2, 0])) == "corrected"
    assert torch.equal(runtime.gates[0].live, base)
    check(runtime, masks, [1, 2, 0])


@pytest.fixture
def launches(monkeypatch):
    """Every launch of this test, as (name, launcher, arguments, options)."""
    return record(monkeypatch)


def test_one_or_two_launches_per_layer_and_none_for_the_base(tmp_path, launches):
    masks = [random_mask(i, shape=SHAPE) for i in range(3)]
    runtime = made(tmp_path, masks, graphs=512)
    handles = runtime.handles()
    for chosen, each in (([1, 2, 3, 0], 1), ([0, 0], 0), ([1] * 100, 2), ([0], 0)):
        launches.clear()
        runtime.begin_step(np.array(chosen))
        assert not launches
        for layer, handle in enumerate(handles):
            x, y = inputs(runtime, len(chosen), layer)
            torch.ops.bmt.masked_delta(y, x, handle)
        names = [launch[0] for launch in launches]
        assert names == ["correct", "correct_tiles"][:each] * len(handles)


def test_a_graph_recorded_without_masks_serves_every_mixture(tmp_path, launches):
    """Like a CUDA graph: record a launch once and repeat it with the same arguments."""
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(3)]
    runtime = made(tmp_path, [], graphs=64)
    x, y = inputs(runtime, 8)
    runtime.prepare_capture(8)
    launches.clear()
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    [(label, launcher, arguments, options)] = launches
    assert label == "correct"
    assert torch.equal(y, inputs(runtime, 8)[1]), "the capture changes nothing"
    for i, mask in enumerate(masks):
        runtime.add(i + 1, f"m{i}", laid_out(mask, tmp_path))
    # Fewer tokens than recorded: the others are the graph's padding.
    for chosen in ([1, 2, 0, 3, 1], [3] * 8, [2], [0, 0, 0], [1, 1], []):
        fresh_x, fresh_y = inputs(runtime, 8, seed=len(chosen))
        x.copy_(fresh_x)
        y.copy_(fresh_y)
        runtime.begin_step(np.array(chosen))
        launcher(*arguments, **options)
        want = expected(fresh_y, x, runtime, masks, [*chosen, *[0] * (8 - len(chosen))])
        torch.testing.assert_close(y[:, : SHAPE[0]], want, rtol=1e-5, atol=2e-5)
        assert torch.equal(y[len(chosen) :], fresh_y[len(chosen) :])


@pytest.mark.found
def test_a_graph_beyond_the_prepared_size_is_refused(tmp_path, monkeypatch):
    """Its steps would answer as the base; a warm-up run of that size is no graph."""
    runtime = made(tmp_path, [random_mask(0, shape=SHAPE)], graphs=8)
    handle = runtime.handles()[0]
    for capturing, tokens in ((False, 9), (True, 8)):
        monkeypatch.setattr(kernel_module, "_captures", lambda device, now=capturing: now)
        runtime.prepare_capture(tokens)
        x, y = inputs(runtime, tokens)
        torch.ops.bmt.masked_delta(y, x, handle)
    runtime.prepare_capture(9)
    x, y = inputs(runtime, 9)
    with pytest.raises(KernelInputError, match=r"9 tokens.*at most 8.*max-cudagraph-capture-size"):
        torch.ops.bmt.masked_delta(y, x, handle)
    # Graphs of steps without masks may have any size.
    runtime.begin_step(np.zeros(9, np.int64))
    torch.ops.bmt.masked_delta(y, x, handle)


def test_a_graph_of_a_step_in_place_changes_nothing(tmp_path, launches):
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(2)]
    runtime = made(tmp_path, masks, mode="auto", graphs=64)
    x, y = inputs(runtime, 4)
    runtime.begin_step(np.array([1, 2, 1, 2]))
    launches.clear()
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    [(_, launcher, arguments, options)] = launches
    go_in_place(runtime, np.ones(4))
    before = y.clone()
    launcher(*arguments, **options)
    assert torch.equal(y, before)


class NoDeviceReads(TorchDispatchMode):
    """Fails on operations that make the host wait for the GPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "unique", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(wait in str(func) for wait in self.WAITS):
            raise AssertionError(f"{func} waits for the GPU")
        return func(*args, **(kwargs or {}))


def test_steps_read_nothing_from_the_gpu(tmp_path, monkeypatch):
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(4)]
    runtimes = [made(tmp_path, masks, mode=mode) for mode in ("delta", "auto")]
    record(monkeypatch, dry=True)  # the interpreter itself reads
    for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):

        def refuse(self, *args, method=method, **kwargs):
            raise AssertionError(f"Tensor.{method} waits for the GPU")

        monkeypatch.setattr(torch.Tensor, method, refuse)
    with NoDeviceReads():
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(3).nonzero()
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(3).sum().item()
        for runtime in runtimes:
            handle = runtime.handles()[1]
            x, y = inputs(runtime, 100, 1)
            for chosen in ([1, 2, 0], [3] * 100, [0], [1], [4, 4], [0, 0]):
                runtime.begin_step(np.array(chosen))
                torch.ops.bmt.masked_delta(y[: len(chosen)], x[: len(chosen)], handle)
            runtime.prepare_capture(100)
            torch.ops.bmt.masked_delta(y, x, handle)


def test_eviction_within_the_reserved_memory(tmp_path):
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(6)]
    one = made(tmp_path, masks[:1]).store.resident_bytes
    runtime = made(tmp_path, masks, memory=3 * one + 100)
    assert len(runtime.store) == 3
    assert runtime.kernel.arena.used == runtime.store.resident_bytes == 3 * one
    rng = np.random.default_rng(1)
    for _ in range(25):
        check(runtime, masks, rng.integers(0, 7, 3))
        assert runtime.kernel.arena.used <= 3 * one + 100
    for adapter in range(1, 7):
        runtime.remove(adapter)
    # Memory that a step may still read is freed by the next one.
    runtime.begin_step(np.zeros(1))
    assert runtime.kernel.arena.used == 0


def test_a_step_of_more_masks_than_memory_holds_is_right(tmp_path):
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(5)]
    one = made(tmp_path, masks[:1]).store.resident_bytes
    runtime = made(tmp_path, masks, memory=2 * one)
    check(runtime, masks, [1, 2, 3, 4, 5])
    assert len(runtime.store) == 5
    runtime.begin_step(np.array([1]))
    runtime.add(9, "other", laid_out(random_mask(9, shape=SHAPE, zeros=200), tmp_path))
    assert runtime.store.resident_bytes <= 2 * one


def test_a_load_does_not_overwrite_a_mask_in_use(tmp_path):
    """Decoding steps reuse a plan, so its masks may not move."""
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(4)]
    one = made(tmp_path, masks[:1]).store.resident_bytes
    runtime = made(tmp_path, masks[:2], memory=2 * one)
    check(runtime, masks, [1, 2])
    for adapter in (3, 4):
        runtime.add(adapter, "new", laid_out(masks[adapter - 1], tmp_path))
        check(runtime, masks, [1, 2])


def test_a_plan_keeps_its_masks_in_memory(tmp_path):
    """The plan's addresses refer to them even if no other reference is left."""
    layers = gates(shape=SHAPE)
    masks = [random_mask(i, shape=SHAPE, zeros=200) for i in range(3)]
    layouts = [laid_out(mask, tmp_path) for mask in masks]
    one = made(tmp_path, masks[:1]).store.resident_bytes
    kernel = TritonKernel(layers, memory_bytes=2 * one, max_tokens=8)
    kernel.plan(np.array([1]), {1: load_mask(layouts[0], layers, kernel.to_device)})
    second = load_mask(layouts[1], layers, kernel.to_device)
    with pytest.raises(NoRoomError, match="no free range"):
        load_mask(layouts[2], layers, kernel.to_device)
    x = torch.randn(1, SHAPE[1])
    y = x @ layers[0].base.t()
    want = x @ (layers[0].base * dense(masks[0], 0)).t()
    kernel.run(0, y, x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=2e-5)
    kernel.idle()
    third = load_mask(layouts[2], layers, kernel.to_device)
    assert kernel.arena.used == 2 * one
    del second, third
    assert kernel.arena.used == 0


def test_unsupported_steps_are_refused(tmp_path):
    runtime = made(tmp_path, [random_mask(0, shape=SHAPE)], tokens=8)
    with pytest.raises(KernelInputError, match="9 tokens"):
        runtime.begin_step(np.ones(9))
    x, y = inputs(runtime, 8)
    runtime.begin_step(np.ones(8))
    with pytest.raises(KernelInputError, match="float64"):
        torch.ops.bmt.masked_delta(y.double(), x.double(), runtime.handles()[0])
    with pytest.raises(KernelInputError, match="contiguous"):
        torch.ops.bmt.masked_delta(y.t().contiguous().t(), x, runtime.handles()[0])
    with pytest.raises(KernelInputError, match="16 tokens"):
        torch.ops.bmt.masked_delta(y.repeat(2, 1), x.repeat(2, 1), runtime.handles()[0])


def test_gates_of_several_dtypes_are_refused():
    mixed = [*gates(1), *gates(1, dtype=torch.bfloat16)]
    with pytest.raises(KernelInputError, match="dtype"):
        TritonKernel(mixed)
    narrow, wide = gates(1, shape=(2, 10)), gates(1, shape=(2, 70_000))
    with pytest.raises(KernelInputError, match="columns"):
        TritonKernel([*narrow, *wide])


def test_the_benchmark_runs(monkeypatch):
    """The GPU benchmark on small sizes, without its clock."""
    path = Path(__file__).parents[4] / "benchmarks" / "suites" / "gpu.py"
    spec = importlib.util.spec_from_file_location("bmt_gpu_benchmark", path)
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, gpu)
    spec.loader.exec_module(gpu)
    sizes = gpu.Sizes(
        layers=2, rows=70, cols=40, sparsity=0.05, masks=3, decode=(2,), prefill=(64,),
        graphs=2, dtype=torch.float32,
    )  # fmt: skip
    model = gpu.Model(sizes, torch.device("cpu"), TritonKernel)
    before = [weight.clone() for weight in model.weights]
    differ = []

    def race(a, b):
        differ.append(not np.array_equal(a(), b()) if a() is not None else None)
        return 1.0, 3.0

    figures = [*gpu.corrections(model, race), *gpu.switches(model, race)]
    # Corrected steps differ from plain ones, except for base tokens; switches leave no trace.
    assert differ == [True, True, True, True, False, None, None, None]
    assert all(torch.equal(w, b) for w, b in zip(model.weights, before, strict=True))
    assert len(gpu.table(figures).splitlines()) == 1 + len(figures)
    assert {"id", "value", "unit", "baseline", "command"} == set(gpu.record(figures[0]))


def test_the_gpu_command_records_only_what_graphs_may_hold(monkeypatch):
    """Its sweep captures each work; here every one runs as if a graph were captured."""
    monkeypatch.setattr(kernel_module, "_captures", lambda device: True)
    kept: dict[str, object] = {}
    gpu_kernels.sweep(Job("", tiny=True), kept.__setitem__)
    assert {"decode 32 tokens, 0 masks", "decode 32 tokens, 4 masks"} < set(kept)
    assert {"prefill 80 tokens, 1 masks", "prefill 80 tokens, 4 masks"} < set(kept)


def test_a_gate_may_be_a_strided_view(tmp_path):
    """The gate is a part of the fused weight, which may be a view of a larger tensor."""
    whole = torch.randn(2 * SHAPE[0], 2 * SHAPE[1])
    part = whole[: SHAPE[0], : SHAPE[1]]
    before = whole.clone()
    mask = random_mask(0, layers=1, shape=SHAPE, zeros=300)
    layers = [GateLayer(name(0), (0, SHAPE[0]), part, part)]
    runtime = made(tmp_path, [mask], mode="scatter", layers=layers)
    runtime.begin_step(np.array([1]))
    before[: SHAPE[0], : SHAPE[1]] *= dense(mask, 0)
    assert torch.equal(whole, before)
