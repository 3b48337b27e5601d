"""Mask store: bound in bytes, pins, and costs independent of the number of masks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.mask_store import PinError
from bmt_server.worker.runtime import MaskRuntime

from tests.support.worker import dense, gates, laid_out, random_mask


def copy_of(layout: Layout, number: int) -> Layout:
    """The same rows under another digest, so that thousands of masks share one file."""
    return Layout(f"{number:064x}", layout.tensors)


def full(tmp_path, count: int) -> MaskRuntime:
    runtime = MaskRuntime(gates(1, live=False, shape=(4, 8)), "delta", 1 << 40)
    layout = laid_out(random_mask(0, 1, (4, 8), 3), tmp_path)
    for i in range(count):
        runtime.add(i + 1, f"m{i}", copy_of(layout, i))
    return runtime


def cost(work, repeats: int = 300) -> float:
    """Least CPU time of `repeats` calls of `work`, seconds."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for i in range(repeats):
            work(i)
        best = min(best, time.process_time() - start)
    return best


def test_costs_do_not_grow_with_the_number_of_masks(tmp_path):
    few, many = full(tmp_path, 64), full(tmp_path, 6400)
    layout = laid_out(random_mask(1, 1, (4, 8), 3), tmp_path)

    def step(runtime):
        return lambda i: runtime.begin_step(np.arange(i % 7 + 1, i % 7 + 33))

    def add_and_remove(runtime):
        def work(i):
            runtime.add(100_000 + i, "new", copy_of(layout, 100_000 + i))
            runtime.remove(100_000 + i)

        return work

    def evict(runtime):
        runtime.store.capacity_bytes = runtime.store.resident_bytes
        return lambda i: runtime.add(200_000 + i, "new", copy_of(layout, 200_000 + i))

    def stats(runtime):
        return lambda i: runtime.collect_stats()

    for work in (step, add_and_remove, stats, evict):
        # A hundred times the masks: a cost that grows with them would exceed three times by far.
        assert cost(work(many)) < 3 * cost(work(few)) + 0.01, work.__name__


def test_stats_name_the_most_recently_used_masks(tmp_path):
    runtime = full(tmp_path, 500)
    runtime.begin_step(np.array([3, 7]))
    runtime.begin_step(np.array([5]))
    names = runtime.collect_stats().resident
    assert len(names) == 64
    assert names[-1] == "m4"
    assert {"m2", "m6"} == set(names[-3:-1])
    assert runtime.collect_stats().resident_masks == 500


def test_an_evicted_mask_returns_when_used_and_others_leave(tmp_path):
    masks = [random_mask(i) for i in range(4)]
    evicted: list[int] = []
    runtime = MaskRuntime(gates(live=False), "delta", 1 << 30, on_evict=evicted.extend)
    for i, mask in enumerate(masks):
        runtime.add(i + 1, "m", laid_out(mask, tmp_path))
    one = runtime.store.resident_bytes // 4
    runtime.store.capacity_bytes = 2 * one
    runtime.begin_step(np.array([1]))
    assert evicted == [2, 3], "the least recently used, down to the bound; 1 was just used"
    runtime.begin_step(np.array([2, 3]))
    assert set(evicted[2:]) == {1, 4}
    x = torch.randn(2, 40)
    y = x @ runtime.gates[0].base.t()
    torch.ops.bmt.masked_delta(y, x, runtime.handles()[0])
    for row, adapter in enumerate((2, 3)):
        want = x[row] @ (runtime.gates[0].base * dense(masks[adapter - 1], 0)).t()
        torch.testing.assert_close(y[row], want)


def test_pins_of_several_ids_end_one_by_one(tmp_path):
    mask = random_mask(0)
    runtime = MaskRuntime(gates(live=False), "delta", 1 << 30)
    for adapter in (1, 2):
        runtime.add(adapter, "m", laid_out(mask, tmp_path))
        assert runtime.store.pin(adapter)
    assert runtime.store.pin(1, False)
    one = runtime.store.resident_bytes
    runtime.store.capacity_bytes = int(1.5 * one)
    runtime.add(3, "other", laid_out(random_mask(1), tmp_path))
    assert runtime.store.resident(2), "the other tenant pinned it too"
    runtime.remove(2)
    runtime.add(4, "other", laid_out(random_mask(2), tmp_path))
    assert not runtime.store.resident(1)
    assert not runtime.store.pin(1), "only what is resident can be pinned"


def test_a_pin_that_would_take_all_memory_is_refused(tmp_path):
    runtime = MaskRuntime(gates(live=False), "delta", 1 << 30)
    for i in range(2):
        runtime.add(i + 1, "m", laid_out(random_mask(i), tmp_path))
    runtime.store.capacity_bytes = runtime.store.resident_bytes * 3 // 4
    assert runtime.store.pin(1)
    with pytest.raises(PinError, match="--mask-memory-mib"):
        runtime.store.pin(2)


def test_only_the_step_reads_live_weights_and_only_while_they_hold_the_base(tmp_path):
    """A mask that is loaded while another is in the weights gets the base's values."""
    layers = gates()
    base = [g.base.clone() for g in layers]
    masks = [random_mask(i, zeros=400) for i in range(3)]
    runtime = MaskRuntime(layers, "scatter", 1 << 30)
    runtime.add(1, "m", laid_out(masks[0], tmp_path))
    runtime.begin_step(np.array([1, 1]))
    runtime.add(2, "m", laid_out(masks[1], tmp_path))
    assert runtime.store.resident(2)
    assert not runtime.store.ready([2])
    runtime.begin_step(np.array([2]))
    assert all(
        torch.equal(g.live, b * dense(masks[1], i))
        for i, (g, b) in enumerate(zip(layers, base, strict=True))
    )
    runtime.begin_step(np.array([0]))
    assert all(torch.equal(g.live, b) for g, b in zip(layers, base, strict=True))


MEMORY = """
import gc, sys
from pathlib import Path
import torch
from bmt_server.ipc.mask_layout import Layout, map_layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.runtime import MaskRuntime

torch.set_num_threads(1)
layers, rows, cols, count = 30, 1536, 576, int(sys.argv[2])
name = "model.layers.{}.mlp.gate_proj.weight".format
base = [torch.zeros(rows, cols, dtype=torch.bfloat16) for _ in range(layers)]
gates = [GateLayer(name(i), (0, rows), weight) for i, weight in enumerate(base)]
runtime = MaskRuntime(gates, "delta", 1 << 40)

def anonymous():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    kib = {k: int(fields[k].split()[0]) for k in ("RssAnon", "VmSwap", "RssFile")}
    return 1024 * (kib["RssAnon"] + kib["VmSwap"]), 1024 * kib["RssFile"]

def add(number):
    layout = map_layout(sys.argv[1])
    layout.digest = f"{number:064x}"
    runtime.add(number, "m", layout)

# The first masks use up free memory of the heap.
for number in range(1, 100):
    add(number)
gc.collect()
before, held = anonymous(), runtime.store.resident_bytes
for number in range(100, 100 + count):
    add(number)
gc.collect()
after = anonymous()
tensors = 0
for mask in runtime.store._resident.values():
    for l in mask.layers:
        tensors += sum(t.nbytes for t in (l.block_start, l.row_end, l.cols, l.values))
print(runtime.store.resident_bytes, tensors, runtime.store.resident_bytes - held,
      after[0] - before[0], after[1] - before[1])
"""


def test_reported_bytes_are_the_memory_that_masks_use(tmp_path):
    """SmolLM2's shapes: reported bytes, bytes of the tensors, and growth of the process."""
    mask = random_mask(0, layers=30, shape=(1536, 576), zeros=1769)
    path = Path(laid_out_path(mask, tmp_path))
    count = 400
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reported, tensors, reported_growth, grown, grown_files = map(int, done.stdout.split())
    assert tensors <= reported <= 1.02 * tensors
    assert reported_growth <= grown <= 1.02 * reported_growth + (4 << 20)
    assert grown_files < 8 << 20, "pages of mapped files are released"


def laid_out_path(mask, folder: Path) -> str:
    laid_out(mask, folder)
    return str(folder / f"{mask.digest}.lay")
