"""Cold path: fetched bytes become a mapped file, or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import bmt_core
import pytest
from bmt_server.ipc.blob import BlobError, blob_ranges
from bmt_server.ipc.cold_path import ColdPath
from bmt_server.ipc.disk_cache import DiskCache
from bmt_server.ipc.mask_source import MaskSource

from tests.support.worker import BASE, COLS, ROWS, name, random_mask

MASK = random_mask(0)
DATA = bmt_core.encode(MASK)
SOURCE = MaskSource("default", MASK.digest, hashlib.sha256(DATA).hexdigest())


def cold_path(folder: Path, bound: int = 1 << 20) -> ColdPath:
    limits = bmt_core.Limits.for_geometry({name(i): (ROWS, COLS) for i in range(2)}, 0.5)
    return ColdPath(DiskCache(folder, bound), BASE.fingerprint, limits)


def test_open_fetches_once_and_then_maps(tmp_path):
    path, fetched = cold_path(tmp_path), []

    def fetch(source: MaskSource) -> bytearray:
        fetched.append(source)
        return bytearray(DATA)

    for _ in range(2):
        assert path.open(SOURCE, fetch, 1.0).digest == MASK.digest
    assert fetched == [SOURCE]
    path.disk.path(MASK.digest).write_bytes(b"damaged")
    assert path.open(SOURCE, fetch, 1.0).digest == MASK.digest
    assert len(fetched) == 2


def test_a_mapping_outlives_the_eviction_of_its_file(tmp_path):
    """The cache is too small for the mask, so the trim after the fetch evicts it."""
    path = cold_path(tmp_path, bound=0)
    layout = path.open(SOURCE, lambda _: bytearray(DATA), 1.0)
    assert not path.disk.path(MASK.digest).exists()
    assert layout.tensors.keys() == {t.name for t in MASK.tensors}


@pytest.mark.parametrize("blob", [DATA[:-1], b"", bmt_core.encode(random_mask(1))])
def test_a_wrong_blob_leaves_no_file(tmp_path, blob):
    path = cold_path(tmp_path)
    with pytest.raises(BlobError) as caught:
        path.install(SOURCE, bytearray(blob))
    assert caught.value.code == "blob_damaged"
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("stored", [0, 3, 8, 10])
def test_ranges_end_with_the_blob(stored):
    """Replies as GETRANGE gives them, for blobs shorter than or as long as expected."""
    blob, data, ranges = bytes(range(stored)), bytearray(), []
    for start, end in blob_ranges(data, 10, 4):
        ranges.append((start, end))
        data += blob[start : end + 1]
    assert data == blob
    assert len(ranges) == {0: 1, 3: 2, 8: 3, 10: 3}[stored]
