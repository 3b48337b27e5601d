"""Limits of a base admit every allowed mask in both codecs, and refuse larger ones."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest

SHAPES = {f"model.layers.{i}.mlp.gate_proj.weight": (96, 257) for i in range(4)}
NUMEL = 4 * 96 * 257
CODECS = ("gaps", "packbits")


def mask(zeros: int, seed: int = 0, metadata=None) -> bmt_core.Mask:
    """Mask with exactly `zeros` zeros at random positions."""
    picks = np.sort(np.random.default_rng(seed).choice(NUMEL, zeros, replace=False))
    size = 96 * 257
    tensors = tuple(
        bmt_core.TensorMask(name, (96, 257), picks[picks // size == i] - i * size)
        for i, name in enumerate(SHAPES)
    )
    return bmt_core.Mask(bmt_core.Base("m" * 1024, "ab" * 32), tensors, metadata or {})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sparsity", [0.0005, 0.002, 0.05, 0.3, 0.5, 1.0])
def test_a_mask_with_the_most_zeros_allowed_is_read_and_one_with_more_is_not(codec, sparsity):
    limits = bmt_core.Limits.for_geometry(SHAPES, sparsity)
    most = int(NUMEL * sparsity)
    for seed in range(3):
        # The longest model id and metadata that a header may have.
        largest = mask(most, seed, {"log": "".join(map(chr, range(0x4E00, 0x4E00 + 21000)))})
        data = bmt_core.encode(largest, codec)
        assert bmt_core.decode(data, limits=limits) == largest
    if sparsity < 1:
        data = bmt_core.encode(mask(most + 1), codec)
        for read in (bmt_core.decode, bmt_core.inspect):
            with pytest.raises(bmt_core.TooManyZeros):
                read(data, limits=limits)


@pytest.mark.parametrize("codec", CODECS)
def test_a_mask_with_the_most_escapes_is_read(codec):
    geometry = {"w": (1000, 655_350)}
    positions = np.arange(65535, 655_350_000, 65536)
    sparse = bmt_core.Mask(
        bmt_core.Base("m", "ab" * 32), (bmt_core.TensorMask("w", (1000, 655_350), positions),)
    )
    limits = bmt_core.Limits.for_geometry(geometry, positions.size / 655_350_000)
    assert bmt_core.decode(bmt_core.encode(sparse, codec), limits=limits) == sparse


def test_a_base_bounds_the_size_of_any_file():
    limits = bmt_core.Limits.for_geometry(SHAPES, 0.05)
    assert limits.max_raw_bytes < NUMEL
    assert limits.max_file_bytes < NUMEL / 8 * 1.01 + 80_000
    limits.check_file(limits.max_file_bytes)
    limits.check_raw(limits.max_raw_bytes)
    with pytest.raises(bmt_core.TooLarge):
        limits.check_file(limits.max_file_bytes + 1)
    with pytest.raises(bmt_core.TooLarge):
        limits.check_raw(limits.max_raw_bytes + 1)
    data = bmt_core.encode(mask(10)) + bytes(limits.max_file_bytes)
    for read in (bmt_core.decode, bmt_core.inspect):
        with pytest.raises(bmt_core.TooLarge):
            read(data, limits=limits)


def test_files_and_devices_are_read_up_to_the_limit(tmp_path):
    path = tmp_path / "m.bmt"
    data = bmt_core.encode(mask(10))
    path.write_bytes(data)
    assert bmt_core.load(path, limits=bmt_core.Limits(max_file_bytes=len(data))) == mask(10)
    limits = bmt_core.Limits(max_file_bytes=len(data) - 1)
    with pytest.raises(bmt_core.TooLarge):
        bmt_core.load(path, limits=limits)
    with pytest.raises(bmt_core.TooLarge):
        bmt_core.load("/dev/zero", limits=limits)


def test_a_subset_of_the_tensors_is_read_and_another_tensor_is_refused():
    limits = bmt_core.Limits.for_geometry(SHAPES, 0.05)
    whole = mask(400)
    part = bmt_core.Mask(whole.base, whole.tensors[1:2])
    assert bmt_core.decode(bmt_core.encode(part), limits=limits) == part
    for name, shape in (("other", (96, 257)), (whole.tensors[0].name, (257, 96))):
        tensor = bmt_core.TensorMask(name, shape, np.array([1]))
        data = bmt_core.encode(bmt_core.Mask(whole.base, (tensor,)))
        with pytest.raises(bmt_core.BaseMismatch):
            bmt_core.decode(data, limits=limits)


def test_a_base_without_such_tensors_allows_the_empty_mask():
    limits = bmt_core.Limits.for_geometry({})
    empty = bmt_core.Mask(bmt_core.Base("m", "ab" * 32), ())
    for codec in CODECS:
        assert bmt_core.decode(bmt_core.encode(empty, codec), limits=limits) == empty
