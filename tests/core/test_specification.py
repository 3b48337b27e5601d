"""A second reader, written from docs/reference/format.md alone, agrees with bmt_core."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import bmt_core
import numpy as np
import pytest

from tests.support import specification
from tests.support.masks import mask_of_shapes

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/format.md"


@pytest.mark.parametrize("codec", ["gaps", "packbits"])
@pytest.mark.parametrize(
    ("shapes", "sparsity"),
    [
        ([(3, 5)], 0.4),
        ([(7, 9), (16, 8), (1, 1)], 0.1),
        ([(400, 500), (600, 700)], 1e-5),  # gaps above 65535: escapes, also across tensors
        ([(300, 300), (300, 300)], 0.0),
        ([(20, 20)], 1.0),
        ([], 0.0),
    ],
)
def test_a_second_reader_agrees(codec, shapes, sparsity):
    for seed in range(5):
        mask = mask_of_shapes(seed, shapes, sparsity)
        data = bmt_core.encode(mask, codec)
        second = specification.read(data)
        assert second["positions"] == {t.name: t.positions.tolist() for t in mask.tensors}
        assert second["model"] == mask.base.model_id
        assert second["metadata"] == mask.metadata
        ours = bmt_core.decode(data)
        assert ours == mask
        assert ours.metadata == mask.metadata
        assert bmt_core.encode(mask, codec) == data, "one mask, one file"
    assert bmt_core.encode(mask, "gaps") != data or codec == "gaps"


def test_the_example_of_the_page_equals_the_file():
    dump = re.search(r"```\n(0000 .*?)```", PAGE.read_text(), re.DOTALL)
    assert dump is not None
    rows = dump.group(1).strip().splitlines()
    example = bytes.fromhex("".join(r.split("  ", 1)[1].replace(" ", "") for r in rows))
    tensor = bmt_core.TensorMask("w", (2, 4), np.array([1, 6], np.uint32))
    mask = bmt_core.Mask(bmt_core.Base("m", "ab" * 32), (tensor,), {})
    assert bmt_core.encode(mask) == example
    assert specification.read(example)["positions"] == {"w": [1, 6]}


def test_the_base_fingerprint_follows_the_page(tmp_path):
    tensors = {"b.weight": np.arange(6, dtype="<f4").reshape(2, 3), "a": np.ones(4, "<f2")}
    kinds = {"<f4": "F32", "<f2": "F16"}

    def write(path, names):
        header, body = {}, b""
        for n in names:
            raw = tensors[n].tobytes()
            header[n] = {
                "dtype": kinds[tensors[n].dtype.str],
                "shape": list(tensors[n].shape),
                "data_offsets": [len(body), len(body) + len(raw)],
            }
            body += raw
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    write(one / "model.safetensors", ["b.weight", "a"])
    write(two / "model-1.safetensors", ["a"])
    write(two / "model-2.safetensors", ["b.weight"])
    sha = hashlib.sha256(b"bmt base fingerprint v1\0")
    for name in sorted(tensors):
        array = tensors[name]
        for part in (name, kinds[array.dtype.str], ",".join(map(str, array.shape))):
            sha.update(struct.pack("<I", len(part)) + part.encode())
        sha.update(hashlib.sha256(array.tobytes()).digest())
    assert bmt_core.fingerprint(one) == bmt_core.fingerprint(two) == sha.hexdigest()
    raw = bytearray((one / "model.safetensors").read_bytes())
    for at in range(len(raw) - 32, len(raw)):  # every byte of the data counts
        raw[at] ^= 1
        (one / "model.safetensors").write_bytes(raw)
        assert bmt_core.fingerprint(one) != sha.hexdigest()
        raw[at] ^= 1
