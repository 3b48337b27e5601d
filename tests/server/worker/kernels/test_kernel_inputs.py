"""Edge cases of each kernel's inputs, against the reference in double precision."""

import numpy as np
import pytest
import torch
from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels import reference
from bmt_server.worker.kernels.selection import KernelLimits, make_kernel
from bmt_server.worker.resident_mask import load_mask
from bmt_server.worker.runtime import MaskRuntime

from tests.support.worker import rows_of

pytestmark = pytest.mark.usefixtures("each_kernel")

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: small matrices gain nothing from more, which wait for each other under load."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Steps:
    """A model of one or more gates [R, K] with random weights, masks by positions, and steps."""

    def __init__(self, shape, masks, dtype=torch.float32, seed=0):
        """masks: for each mask, one array of flat positions per layer."""
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.dtype, self.masks = shape, dtype, masks
        layers = len(masks[0])
        self.weights = [self.random(*shape) for _ in range(layers)]
        self.gates = [GateLayer(str(i), (0, shape[0]), w) for i, w in enumerate(self.weights)]
        self.runtime = MaskRuntime(self.gates, "delta", 1 << 30)
        for adapter, mask in enumerate(masks, 1):
            tensors = {str(i): rows_of(p, shape) for i, p in enumerate(mask)}
            self.runtime.add(adapter, str(adapter), Layout(f"{adapter:064x}", tensors))
        self.handles = self.runtime.handles()

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def check(self, tokens, x=None, y=None):
        """Run a step in every layer and compare; x [T, K] and y [T, N >= R] may be any views."""
        tokens = np.asarray(tokens, np.int64)
        r, k = self.shape
        x = self.random(tokens.size, k) if x is None else x
        y = self.random(tokens.size, 2 * r) if y is None else y
        self.runtime.begin_step(tokens)
        for layer, weight in enumerate(self.weights):
            before = y.clone()
            torch.ops.bmt.masked_delta(y, x, self.handles[layer])
            assert torch.equal(y[:, r:], before[:, r:]), "the up projection is unchanged"
            base = torch.from_numpy(tokens == 0)
            assert torch.equal(y[base], before[base]), "base tokens keep every bit"
            keep = {a: self.keep(a, layer) for a in np.unique(tokens).tolist() if a}
            exact = {"keep": keep, "token_masks": tokens, "dtype": torch.float64}
            want = reference.masked_delta(before, x, weight, **exact)
            # The sum of the products' magnitudes, which bounds the rounding of sums.
            size = -reference.masked_delta(torch.zeros_like(before), x.abs(), weight.abs(), **exact)
            error = (y[:, :r].double() - want).abs()
            bound = ROUNDING[self.dtype] * want.abs() + 1e-6 * (size + want.abs())
            assert bool((error <= bound).all()), float((error / bound.clamp(1e-30)).max())

    def keep(self, adapter, layer):
        keep = torch.ones(self.shape).flatten()
        keep[torch.from_numpy(self.masks[adapter - 1][layer].astype(np.int64))] = 0
        return keep.view(self.shape)


def some(rng, shape, zeros):
    return np.sort(rng.choice(shape[0] * shape[1], zeros, replace=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_random_shapes(dtype, each_kernel):
    rng = np.random.default_rng(3)
    # 500 per dtype for the native kernel; the portable one is slow.
    for seed in range(500 if each_kernel == "native" else 60):
        shape = (int(rng.integers(1, 200)), int(rng.integers(1, 90)))
        sparsity = float(rng.choice([0.001, 0.01, 0.05, 0.3, 1.0]))
        zeros = int(shape[0] * shape[1] * sparsity)
        count = int(rng.integers(1, 5))
        steps = Steps(shape, [[some(rng, shape, zeros)] for _ in range(count)], dtype, seed)
        tokens = rng.integers(0, count + 1, int(rng.integers(1, 70)))
        steps.check(np.sort(tokens) if seed % 2 else tokens)


@pytest.mark.parametrize("tokens", [1, 3, 4, 7, 9, 20, 33, 70])
@pytest.mark.parametrize("mean", [0.2, 1, 2.5, 4.5, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_sparsity_and_number_of_tokens(dtype, mean, tokens):
    """mean: zeros per row. Each variant of the native kernel runs in some of these cases."""
    rng, shape = np.random.default_rng(0), (190, 320)
    steps = Steps(shape, [[some(rng, shape, int(mean * shape[0]))] for _ in range(2)], dtype)
    steps.check(np.ones(tokens))
    steps.check(np.arange(tokens) % 3)


@pytest.mark.parametrize("tokens", [1, 6, 40])
@pytest.mark.parametrize(
    "counts",
    [
        [0] * 30 + [300] + [1] * 70,
        [300] * 4,
        [256, 0, 255, 0, 17, 16, 33, 32, 8, 4] * 7,
        [0] * 64 + [1] + [0] * 63,
        [320] * 64 + [0] * 2,
    ],
    ids=["one long row", "a block of long rows", "uneven", "one zero", "a whole block"],
)
def test_rows_of_very_different_lengths(counts, tokens):
    rng, k = np.random.default_rng(1), 320
    rows = [np.sort(rng.choice(k, n, replace=False)) + i * k for i, n in enumerate(counts)]
    steps = Steps((len(counts), k), [[np.concatenate(rows).astype(np.int64)]])
    steps.check(np.ones(tokens))


@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_wide_columns(tokens):
    rng, shape = np.random.default_rng(2), (70, 1 << 17)
    steps = Steps(shape, [[some(rng, shape, 900)], [some(rng, shape, 20)]], torch.bfloat16)
    assert steps.runtime.store.use([1])[1].layers[0].cols.dtype == torch.int32
    steps.check(np.arange(tokens) % 3)
    steps.check(np.ones(tokens))


@pytest.mark.parametrize("tokens", [1, 6])
def test_blocks_of_more_zeros_than_16_bits_count(tokens):
    shape = (66, 1 << 11)
    steps = Steps(shape, [[np.arange(shape[0] * shape[1])]])
    assert steps.runtime.store.use([1])[1].layers[0].row_end.dtype == torch.int32
    steps.check(np.ones(tokens))


def test_layers_without_zeros():
    rng, shape, none = np.random.default_rng(4), (70, 30), np.zeros(0, np.int64)
    some_zeros = some(rng, shape, 50)
    steps = Steps(shape, [[none, some_zeros, none], [none, none, some_zeros]])
    for tokens in ([1], [1, 2, 0], [2] * 40 + [1] * 9):
        steps.check(tokens)


def test_a_step_without_tokens():
    steps = Steps((10, 10), [[np.arange(5)]])
    steps.check([])


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_that_are_not_contiguous(dtype, tokens):
    rng, shape = np.random.default_rng(5), (100, 50)
    steps = Steps(shape, [[some(rng, shape, 150)], [some(rng, shape, 400)]], dtype)
    r, k = shape
    mixed = np.arange(tokens) % 3
    for chosen in (np.ones(tokens), mixed):
        x, y = steps.random(tokens, 2 * k), steps.random(tokens, 3 * r)
        steps.check(chosen, x[:, k:], y[:, r:])  # halves of wider rows
        steps.check(chosen, x[:, ::2], y)  # every other column
        steps.check(chosen, steps.random(k, tokens).t(), steps.random(2 * r, tokens).t())
        steps.check(chosen, x[:1, :k].expand(tokens, k))  # the same row again


def test_the_first_half_of_a_fused_output_alone():
    rng, shape = np.random.default_rng(6), (100, 50)
    steps = Steps(shape, [[some(rng, shape, 150)]])
    fused = steps.random(9, 200)
    up = fused[:, 100:].clone()
    steps.check(np.ones(9), y=fused[:, :100])
    assert torch.equal(fused[:, 100:], up)


def test_non_finite_values_stay_in_their_token():
    rng, shape = np.random.default_rng(7), (70, 60)
    steps = Steps(shape, [[some(rng, shape, 400)], [some(rng, shape, 400)]])
    for count in (3, 12):
        x, y = steps.random(count, 60), steps.random(count, 140)
        x[1, 5], y[1, 3] = float("nan"), float("inf")
        want = y.clone()
        steps.runtime.begin_step(np.ones(count, np.int64))
        rest = [i for i in range(count) if i != 1]
        clean = x.clone()
        clean[1] = 0
        torch.ops.bmt.masked_delta(want, clean, steps.handles[0])
        torch.ops.bmt.masked_delta(y, x, steps.handles[0])
        assert torch.equal(y[rest], want[rest])
        assert bool(y[1, :70].isnan().any())
        assert float(y[1, 3]) == float("inf") or bool(y[1, 3].isnan())


def test_the_result_is_bit_identical_for_any_number_of_threads():
    rng, shape = np.random.default_rng(8), (1500, 300)
    masks = [[some(rng, shape, 2000 + 4000 * i)] for i in range(6)]
    steps = Steps(shape, masks, torch.bfloat16)
    tokens = rng.integers(0, 7, 150)
    x, y = steps.random(tokens.size, 300), steps.random(tokens.size, 3000)
    answers = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        steps.runtime.begin_step(tokens)
        answers.append(y.clone())
        torch.ops.bmt.masked_delta(answers[-1], x, steps.handles[0])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("shares", [[1, 64, 35], [100], [33, 33, 34]])
def test_ranks_together_compute_the_whole_output(shares):
    """A rank's rows may start and end anywhere within a block of the whole."""
    rng, shape = np.random.default_rng(9), (100, 40)
    positions = some(rng, shape, 300)
    steps = Steps(shape, [[positions]])
    x, y = steps.random(5, 40), steps.random(5, 100)
    whole = y.clone()
    steps.runtime.begin_step(np.ones(5, np.int64))
    torch.ops.bmt.masked_delta(whole, x, steps.handles[0])
    start, parts = 0, []
    for rows in shares:
        stop = start + rows
        gate = GateLayer("0", (start, stop), steps.weights[0][start:stop])
        runtime = MaskRuntime([gate], "delta", 1 << 30)
        runtime.add(1, "m", Layout("1" * 64, {"0": rows_of(positions, shape)}))
        runtime.begin_step(np.ones(5, np.int64))
        part = y[:, start:stop].clone()
        torch.ops.bmt.masked_delta(part, x, runtime.handles()[0])
        parts.append(part)
        start = stop
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=2e-6)


def test_values_are_the_base_weights_in_any_row_stride():
    rng, shape = np.random.default_rng(10), (130, 40)
    fused = torch.randn(300, 90)
    gate = GateLayer("0", (0, 130), fused[100:230, 50:])
    positions = some(rng, shape, 700)
    layout = Layout("1" * 64, {"0": rows_of(positions, shape)})
    kernel = make_kernel([gate], KernelLimits(memory_bytes=1 << 20))
    mask = load_mask(layout, [gate], kernel.to_device)
    assert torch.equal(mask.layers[0].values, gate.base.flatten()[torch.from_numpy(positions)])


def test_a_switch_writes_only_the_positions_of_the_masks():
    rng, shape = np.random.default_rng(11), (1100, 40)
    fused = [torch.randn(2200, 90) for _ in range(2)]
    gates = [
        GateLayer(str(i), (0, 1100), f[:1100, 50:], f[:1100, 50:]) for i, f in enumerate(fused)
    ]
    base = [f.clone() for f in fused]
    kernel = make_kernel(gates, KernelLimits(memory_bytes=1 << 20))
    masks, where = [], []
    for seed in range(3):
        where.append([some(rng, shape, 3000) for _ in gates])
        tensors = {str(i): rows_of(p, shape) for i, p in enumerate(where[-1])}
        layout = Layout(f"{seed:064x}", tensors)
        masks.append(load_mask(layout, gates, kernel.to_device))
    current = None
    for new in (0, 1, None, 2, 0, None):
        kernel.switch(
            None if current is None else masks[current], None if new is None else masks[new]
        )
        for i, whole in enumerate(base):
            want = whole.clone()
            if new is not None:
                flat = torch.from_numpy(where[new][i])
                want[flat // 40, 50 + flat % 40] = 0
            assert torch.equal(fused[i], want)
        current = new


def test_inputs_that_do_not_fit_the_plan_are_refused():
    steps = Steps((70, 30), [[np.arange(50)]])
    steps.runtime.begin_step(np.ones(4, np.int64))
    handle = steps.handles[0]
    with pytest.raises((RuntimeError, IndexError)):
        torch.ops.bmt.masked_delta(torch.zeros(3, 140), torch.zeros(3, 30), handle)
    with pytest.raises((RuntimeError, IndexError)):
        torch.ops.bmt.masked_delta(torch.zeros(4, 69), torch.zeros(4, 30), handle)
    with pytest.raises(KeyError):
        steps.runtime.kernel.plan(np.array([1, 2]), {1: steps.runtime.store.use([1])[1]})
