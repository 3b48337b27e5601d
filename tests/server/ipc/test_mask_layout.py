"""Laid-out mask files: round trip, and refusal of damage."""

import numpy as np
import pytest
from bmt_server.ipc.mask_layout import LayoutError, map_layout, write_layout

from tests.support.worker import laid_out, random_mask


def test_a_round_trip_keeps_the_positions(tmp_path):
    mask = random_mask(0, layers=3)
    layout = laid_out(mask, tmp_path)
    assert layout.digest == mask.digest
    for tensor in mask.tensors:
        rows = layout.tensors[tensor.name]
        row = np.repeat(np.arange(tensor.shape[0]), np.diff(rows.row_start.astype(np.int64)))
        flat = row * tensor.shape[1] + rows.cols
        np.testing.assert_array_equal(flat, tensor.positions)


def test_slices_of_all_ranks_cover_the_tensor(tmp_path):
    mask = random_mask(1)
    rows = laid_out(mask, tmp_path).tensors[mask.tensors[0].name]
    parts = [rows.slice(i * 8, (i + 1) * 8) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate([p.cols for p in parts]), rows.cols)
    assert sum(int(p.row_start[-1]) for p in parts) == mask.tensors[0].zeros
    assert all(p.row_start[0] == 0 for p in parts)


def test_wide_matrices_use_wide_columns(tmp_path):
    mask = random_mask(2, layers=1, shape=(2, 1 << 17), zeros=100)
    rows = laid_out(mask, tmp_path).tensors[mask.tensors[0].name]
    assert rows.cols.dtype == np.uint32
    assert int(rows.cols.max()) > 1 << 16


def test_an_empty_mask(tmp_path):
    layout = laid_out(random_mask(3, zeros=0), tmp_path)
    assert all(r.cols.size == 0 for r in layout.tensors.values())


def test_every_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "m.lay"
    write_layout(random_mask(4, layers=1, zeros=5), path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LayoutError):
            map_layout(path)


def test_a_truncated_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "m.lay"
    write_layout(random_mask(5), path)
    whole = path.read_bytes()
    for length in (0, 7, 15, 16, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LayoutError):
            map_layout(path)
    path.unlink()
    with pytest.raises(LayoutError, match="no laid-out mask"):
        map_layout(path)
