"""Mask runtime of one worker: in place, corrected, resident, evicted, base restored."""

import numpy as np
import pytest
import torch
from bmt_server.worker.resident_mask import MaskStoreError
from bmt_server.worker.runtime import MaskRuntime, MixedStepError

from tests.support.worker import dense, gates, laid_out, random_mask

pytestmark = pytest.mark.usefixtures("each_kernel")


def filled(tmp_path, mode, count=4, capacity=1 << 30, **options):
    layers = gates(**options)
    runtime = MaskRuntime(layers, mode, capacity)
    masks = [random_mask(i) for i in range(count)]
    for i, mask in enumerate(masks):
        runtime.add(i + 1, f"m{i}@{mask.digest[:12]}", laid_out(mask, tmp_path))
    return runtime, layers, masks


def step(runtime, *adapters):
    return runtime.begin_step(np.array(adapters))


def test_scatter_weights_equal_the_masked_checkpoint_bit_for_bit(tmp_path):
    runtime, layers, masks = filled(tmp_path, "scatter")
    base = [g.base.clone() for g in layers]
    assert step(runtime, 2, 2, 2) == "in_place"
    for i, gate in enumerate(layers):
        assert torch.equal(gate.live, base[i] * dense(masks[1], i))


def test_the_base_is_restored_after_a_thousand_switches(tmp_path):
    runtime, layers, _ = filled(tmp_path, "scatter", count=8, dtype=torch.bfloat16)
    base = [g.base.clone() for g in layers]
    rng = np.random.default_rng(0)
    for _ in range(1000):
        step(runtime, int(rng.integers(0, 9)))
    step(runtime, 0)
    assert all(torch.equal(g.live, b) for g, b in zip(layers, base, strict=True))
    assert runtime.stats.switches > 800


def test_scatter_refuses_a_mixed_step(tmp_path):
    runtime, _, _ = filled(tmp_path, "scatter")
    with pytest.raises(MixedStepError, match="mixes adapters"):
        step(runtime, 1, 2)
    with pytest.raises(MixedStepError):
        step(runtime, 0, 1)


def test_auto_corrects_until_the_switch_is_paid_and_reverts_at_the_first_mixed_step(tmp_path):
    runtime, layers, _ = filled(tmp_path, "auto")
    base = [g.base.clone() for g in layers]
    kinds = [step(runtime, 1, 1) for _ in range(40)]
    paying = kinds.count("corrected")
    assert paying > 2
    assert kinds == ["corrected"] * paying + ["in_place"] * (40 - paying)
    assert not torch.equal(layers[0].live, base[0])
    assert runtime.stats.in_weights == runtime.store.digest(1)[:12]
    assert step(runtime, 1, 2) == "corrected"
    assert torch.equal(layers[0].live, base[0]), "a corrected step needs the base weights"
    assert runtime.stats.reason == "mixed"
    assert step(runtime, 0, 0) == "base"
    assert runtime.stats.in_weights == ""
    assert [step(runtime, 1, 1) for _ in range(paying + 1)].count("corrected") == paying
    counts = runtime.stats
    assert counts.steps_paying == 2 * paying
    assert counts.steps_corrected == 2 * paying + 1
    assert counts.steps_in_place == 40 - paying + 1
    assert counts.steps_base == 1
    assert counts.switches == 3


def test_auto_does_not_thrash_on_alternating_masks(tmp_path):
    runtime, _, _ = filled(tmp_path, "auto")
    for _ in range(100):
        for who in ((1,), (2,), (0,), (3, 1)):
            step(runtime, *who)
    assert runtime.stats.switches == 0
    assert runtime.stats.steps_in_place == 0


def test_two_ids_with_equal_masks_form_one_run(tmp_path):
    runtime, _, masks = filled(tmp_path, "auto")
    runtime.add(9, "twin", laid_out(masks[0], tmp_path))
    kinds = [step(runtime, 1, 9) for _ in range(40)]
    assert kinds[-1] == "in_place"
    runtime, layers, masks = filled(tmp_path, "scatter")
    runtime.add(9, "twin", laid_out(masks[0], tmp_path))
    assert step(runtime, 1, 9) == "in_place"


@pytest.mark.parametrize("mode", ["auto", "scatter", "delta"])
def test_every_step_of_a_random_trace_computes_its_masks(tmp_path, mode):
    """Random runs, mixes, loads and removals; each output against the dense product."""
    runtime, layers, masks = filled(tmp_path, mode)
    base = [g.base.clone() for g in layers]
    handles = runtime.handles()
    rng = np.random.default_rng(0)
    owner, extra, kinds = np.array([1]), 0, set()
    for turn in range(400):
        if rng.random() < 0.1:
            owner = rng.integers(0, 5, 1 if mode == "scatter" else rng.integers(1, 4))
        if rng.random() < 0.02:
            extra += 1
            runtime.add(100 + extra, "x", laid_out(random_mask(100 + extra), tmp_path))
        if turn == 200:
            # A mask that no later step uses.
            assert runtime.remove(101)
        tokens = np.repeat(owner, rng.integers(1, 4))
        kinds.add(runtime.begin_step(tokens))
        x = torch.randn(len(tokens), 40)
        for i, handle in enumerate(handles):
            y = x @ layers[i].live.t()
            torch.ops.bmt.masked_delta(y, x, handle)
            for t, adapter in enumerate(tokens):
                weight = base[i] * dense(masks[adapter - 1], i) if adapter else base[i]
                torch.testing.assert_close(y[t], x[t] @ weight.t())
    assert (
        kinds
        == {
            "auto": {"base", "in_place", "corrected"},
            "scatter": {"base", "in_place"},
            "delta": {"base", "corrected"},
        }[mode]
    )


def test_auto_without_live_weights_is_delta(tmp_path):
    runtime, _, _ = filled(tmp_path, "auto", live=False)
    assert runtime.mode == "delta"
    assert step(runtime, 1, 1) == "corrected"


def test_scatter_without_live_weights_is_refused():
    with pytest.raises(ValueError, match="live weights"):
        MaskRuntime(gates(live=False), "scatter", 1 << 30)


def test_a_mask_loaded_while_another_is_in_place_reads_the_base(tmp_path):
    runtime, layers, _ = filled(tmp_path, "scatter", count=1)
    base = [g.base.clone() for g in layers]
    step(runtime, 1)
    overlapping = random_mask(0, zeros=31)
    runtime.add(9, "other", laid_out(overlapping, tmp_path))
    step(runtime, 9)
    step(runtime, 0)
    assert all(torch.equal(g.live, b) for g, b in zip(layers, base, strict=True))


def test_removing_the_mask_in_place_restores_the_base(tmp_path):
    runtime, layers, _ = filled(tmp_path, "scatter")
    base = [g.base.clone() for g in layers]
    step(runtime, 3)
    assert runtime.remove(3)
    assert not runtime.remove(3)
    step(runtime, 0)
    assert all(torch.equal(g.live, b) for g, b in zip(layers, base, strict=True))


def test_residency_is_bounded_in_bytes_and_evicted_masks_return(tmp_path):
    runtime, _, masks = filled(tmp_path, "delta", count=1, live=False)
    one = runtime.store.resident_bytes
    runtime, layers, masks = filled(tmp_path, "delta", count=8, capacity=3 * one, live=False)
    assert len(runtime.store) == 3
    assert runtime.store.resident_bytes <= 3 * one
    assert runtime.collect_stats().evictions == 5
    x = torch.randn(1, 40)
    for adapter in (1, 2, 3, 4, 5, 6, 7, 8):
        step(runtime, adapter)
        handle = runtime.handles()[0]
        y = x @ layers[0].base.t()
        torch.ops.bmt.masked_delta(y, x, handle)
        want = x @ (layers[0].base * dense(masks[adapter - 1], 0)).t()
        torch.testing.assert_close(y, want)
        assert len(runtime.store) <= 3


def test_masks_of_the_running_step_are_never_evicted(tmp_path):
    runtime, _, _ = filled(tmp_path, "delta", count=6, capacity=1, live=False)
    assert step(runtime, 1, 2, 3, 4, 5, 6) == "corrected"
    assert len(runtime.store) == 6


def test_pinned_masks_stay(tmp_path):
    runtime, _, _ = filled(tmp_path, "delta", count=2, live=False)
    assert runtime.store.pin(1)
    assert not runtime.store.pin(99)
    runtime.store.capacity_bytes = 1
    runtime.add(3, "m3", laid_out(random_mask(3), tmp_path))
    assert runtime.store.resident(1)
    assert not runtime.store.resident(2)


def test_equal_masks_of_two_tenants_share_one_copy(tmp_path):
    runtime, _, masks = filled(tmp_path, "delta", count=1, live=False)
    before = runtime.store.resident_bytes
    runtime.add(2, "same", laid_out(masks[0], tmp_path))
    assert runtime.store.resident_bytes == before
    runtime.remove(1)
    assert runtime.store.resident(2)
    runtime.remove(2)
    assert runtime.store.resident_bytes == 0
    assert runtime.collect_stats().resident == []


def test_reported_bytes_are_those_of_the_tensors(tmp_path):
    runtime, _, masks = filled(tmp_path, "delta", count=1, live=False, dtype=torch.bfloat16)
    mask = runtime.store.use([1])[1]
    tensors = [t for m in mask.layers for t in (m.block_start, m.row_end, m.cols, m.values)]
    zeros, rows = masks[0].zeros, sum(g.shape[0] for g in runtime.gates)
    blocks = len(runtime.gates) * 2
    assert sum(t.nbytes for t in tensors) == 4 * zeros + 2 * rows + 4 * blocks
    aligned = sum(-(-t.nbytes // 64) * 64 for t in tensors)
    assert runtime.store.resident_bytes == aligned == mask.buffer.nbytes


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_compute_the_output_of_one_worker(tmp_path, ranks):
    mask = random_mask(0)
    x = torch.randn(5, 40)
    parts, whole = [], None
    for rank in range(ranks):
        layers = gates(live=False, rank=rank, ranks=ranks)
        runtime = MaskRuntime(layers, "delta", 1 << 30)
        runtime.add(1, "m", laid_out(mask, tmp_path))
        runtime.begin_step(np.ones(5))
        y = x @ layers[0].base.t()
        torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
        parts.append(y)
    whole = x @ (gates(live=False)[0].base * dense(mask, 0)).t()
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_mask_of_other_shapes_is_refused_without_a_trace(tmp_path):
    runtime, _, _ = filled(tmp_path, "delta", count=1, live=False)
    with pytest.raises(MaskStoreError, match="another base model"):
        runtime.add(7, "wrong", laid_out(random_mask(0, shape=(8, 8), zeros=3), tmp_path))
    assert runtime.store.adapters == {1}


def test_a_mask_of_other_names_is_refused(tmp_path):
    runtime = MaskRuntime(gates(layers=2, live=False), "delta", 1 << 30)
    runtime.gates[0].name = "a"
    runtime.gates[1].name = "b"
    with pytest.raises(MaskStoreError, match="not among this model's"):
        runtime.add(7, "wrong", laid_out(random_mask(0), tmp_path))


ALL = {f"model.layers.{i}.mlp.gate_proj.weight": (24, 40) for i in range(4)}


@pytest.mark.found
@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 4), (1, 3)])
def test_a_mask_of_other_pipeline_stages_loads(tmp_path, first, last):
    """A worker holds layers of one stage, and the mask names those of the first stage only."""
    layers = gates(layers=4, live=False)[first:last]
    runtime = MaskRuntime(layers, "delta", 1 << 30, all_gates=ALL)
    runtime.add(1, "first stage", laid_out(random_mask(0), tmp_path))
    assert runtime.begin_step(np.ones(3, np.int64)) == "corrected"
    zeros = sum(layer.cols.numel() for layer in runtime.store.use([1])[1].layers)
    assert zeros == 30 * max(0, 2 - first)


@pytest.mark.parametrize(
    ("gates_of_model", "message"),
    [
        (dict(list(ALL.items())[1:]), "not among this model's 3"),
        (dict.fromkeys(ALL, (24, 44)), "44"),
    ],
)
def test_a_mask_of_another_base_is_refused_by_every_stage(tmp_path, gates_of_model, message):
    layers = gates(layers=4, live=False)[2:]
    runtime = MaskRuntime(layers, "delta", 1 << 30, all_gates=gates_of_model)
    with pytest.raises(MaskStoreError, match=message):
        runtime.add(1, "m", laid_out(random_mask(0), tmp_path))
