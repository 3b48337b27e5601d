"""Cost of a mask of an 8B model: bytes against the entropy bound, CPU time and memory to read."""

from __future__ import annotations

import math
import time
import tracemalloc

import bmt_core
import numpy as np
import pytest

LAYERS, SHAPE, SPARSITY = 32, (14336, 4096), 0.002


@pytest.fixture(scope="module")
def mask() -> bmt_core.Mask:
    rng = np.random.default_rng(0)
    numel = SHAPE[0] * SHAPE[1]
    tensors = tuple(
        bmt_core.TensorMask(
            f"model.layers.{layer}.mlp.gate_proj.weight",
            SHAPE,
            # Drawn with replacement: about 0.1 % are duplicates and count once.
            np.unique(rng.integers(0, numel, int(numel * SPARSITY), dtype=np.uint32)),
        )
        for layer in range(LAYERS)
    )
    return bmt_core.Mask(bmt_core.Base("8B", "ab" * 32), tensors)


@pytest.fixture(scope="module")
def file(mask) -> bytes:
    return bmt_core.encode(mask)


def test_the_file_is_near_the_entropy_bound(mask, file):
    """Random positions need at least numel · H(sparsity) bits; measured: 1.030 times that."""
    p = mask.sparsity
    bits = mask.numel * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert len(file) <= 1.035 * bits / 8


def test_reading_and_checking_takes_milliseconds(mask, file):
    """15 ms on one EPYC core; the bound catches a Python loop over positions or a second pass."""
    limits = bmt_core.Limits.for_geometry({t.name: t.shape for t in mask.tensors})
    spent = []
    for _ in range(10):
        start = time.process_time()
        read = bmt_core.decode(file, limits=limits)
        spent.append(time.process_time() - start)
    assert read == mask
    assert min(spent) < 0.1


def test_reading_takes_memory_for_symbols_and_positions_only(mask, file):
    tracemalloc.start()
    read = bmt_core.decode(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.zeros == mask.zeros
    # 4 bytes per position, 2 per symbol, and one copy of the file's frame.
    assert peak < 4 * mask.zeros + 2 * mask.zeros + len(file) + (4 << 20)
