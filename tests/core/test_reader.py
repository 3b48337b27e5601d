"""The reader returns a mask or raises a `BmtError` for any bytes, by hypothesis."""

from __future__ import annotations

import bmt_core
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.damaged_files import LIMITS, files


@settings(max_examples=300, deadline=None)
@given(files(), st.sampled_from(LIMITS))
def test_the_reader_returns_a_mask_or_raises_its_own_error(data, limits):
    refused = None
    try:
        mask = bmt_core.decode(data, limits=limits)
    except bmt_core.BmtError as error:
        refused = error
    if refused is not None:
        assert refused.code
        assert len(str(refused)) < 1000
        return
    assert bmt_core.decode(bmt_core.encode(mask)) == mask
    assert bmt_core.inspect(data).digest == mask.digest


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_written_mask_is_read_back(data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 70)), max_size=4))
    tensors = []
    for i, (rows, cols) in enumerate(shapes):
        size = rows * cols
        picked = data.draw(st.sets(st.integers(0, size - 1), max_size=min(size, 60)))
        positions = np.array(sorted(picked), np.uint32)
        tensors.append(bmt_core.TensorMask(f"t{i}", (rows, cols), positions))
    mask = bmt_core.Mask(bmt_core.Base("m", "ab" * 32), tuple(tensors))
    for codec in ("gaps", "packbits"):
        found = bmt_core.decode(bmt_core.encode(mask, codec))
        assert found == mask
        assert found.digest == mask.digest
