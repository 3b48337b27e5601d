"""Memory layout of a mask in a worker: positions and values are preserved, in few bytes."""

import numpy as np
import pytest
import torch
from bmt_server.worker.kernels.selection import KernelLimits, make_kernel
from bmt_server.worker.resident_mask import BLOCK_ROWS, load_mask

from tests.support.worker import gates, laid_out, random_mask

pytestmark = pytest.mark.usefixtures("each_kernel")


def resident(tmp_path, zeros, shape, **options):
    mask = random_mask(0, layers=2, shape=shape, zeros=zeros)
    layers = gates(live=False, shape=shape, **options)
    return mask, layers, load_mask(laid_out(mask, tmp_path), layers, to_device(layers))


def to_device(layers):
    return make_kernel(layers, KernelLimits(memory_bytes=1 << 30)).to_device


@pytest.mark.parametrize("shape", [(24, 40), (64, 64), (65, 40), (130, 7), (1, 1), (3, 1 << 17)])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 1.0])
def test_positions_and_values_are_preserved(tmp_path, shape, sparsity):
    size = shape[0] * shape[1]
    mask, layers, held = resident(tmp_path, int(size * sparsity), shape, dtype=torch.bfloat16)
    for tensor, gate, layer in zip(mask.tensors, layers, held.layers, strict=True):
        rows, cols = layer.rows(), layer.cols.long()
        flat = (rows * shape[1] + cols).numpy()
        np.testing.assert_array_equal(flat, tensor.positions)
        assert torch.equal(layer.values, gate.base.flatten()[torch.from_numpy(flat)])
        assert layer.block_start.numel() == -(-shape[0] // BLOCK_ROWS) + 1
        assert layer.block_start[-1] == tensor.zeros == layer.values.numel()


def test_indices_are_32_bits_only_if_16_do_not_suffice(tmp_path):
    _, _, held = resident(tmp_path, 64 * 1024 - 1, (64, 1024))
    assert held.layers[0].row_end.dtype == torch.uint16
    _, _, held = resident(tmp_path, 64 * 1024, (64, 1024))
    assert held.layers[0].row_end.dtype == torch.int32
    assert held.layers[0].cols.dtype == torch.uint16
    _, _, held = resident(tmp_path, 100, (2, 1 << 17))
    assert held.layers[0].cols.dtype == torch.int32


def test_arrays_are_aligned_views_of_one_buffer(tmp_path):
    _, _, held = resident(tmp_path, 333, (130, 70), dtype=torch.bfloat16)
    start, end = held.buffer.data_ptr(), held.buffer.data_ptr() + held.buffer.nbytes
    for layer in held.layers:
        for tensor in (layer.block_start, layer.row_end, layer.cols, layer.values):
            assert (tensor.data_ptr() - start) % 64 == 0
            assert start <= tensor.data_ptr() <= end - tensor.nbytes
            assert tensor.untyped_storage().data_ptr() == held.buffer.untyped_storage().data_ptr()


@pytest.mark.parametrize(("shape", "most"), [((14336, 4096), 4.5), ((1536, 576), 6.0)])
def test_bytes_per_zero(tmp_path, shape, most):
    """bf16 at 0.2 % zeros: a layer of an 8B model, and SmolLM2 with its short rows."""
    zeros = int(shape[0] * shape[1] * 0.002)
    _, _, held = resident(tmp_path, zeros, shape, dtype=torch.bfloat16)
    assert held.nbytes / (2 * zeros) <= most
