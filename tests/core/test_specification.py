"""docs/format.md is enough: a reader made from that page alone agrees with ours."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import bmt_core
import numpy as np
import pytest
import zstandard

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"


def read(data: bytes) -> dict:
    """The page, step by step; no code of the project."""
    assert data[:8] == bytes.fromhex("89424D540D0A1A0A")
    version, flags, codec = struct.unpack_from("<HHB", data, 8)
    table_length, count, metadata_length, id_length, _ = struct.unpack_from("<IIIHH", data, 16)
    fingerprint, digest = data[32:64], data[64:96]
    (payload_length,) = struct.unpack_from("<Q", data, 96)
    crc, payload_crc = struct.unpack_from("<II", data, 104)
    table, payload = data[112 : 112 + table_length], data[112 + table_length :]
    assert (version, flags) == (1, 0)
    assert zlib.crc32(data[:104] + table) == crc
    assert zlib.crc32(payload) == payload_crc
    assert len(payload) == payload_length
    at, tensors = id_length, []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", table, at)
        name = table[at + 2 : at + 2 + length]
        at += 2 + length
        tensors.append((name, *struct.unpack_from("<IIQQ", table, at)))
        at += 24
    assert at + metadata_length == table_length
    positions = (gaps if codec == 1 else packbits)(payload, tensors)
    sha = hashlib.sha256(b"bmt mask digest v1\0" + fingerprint + struct.pack("<I", count))
    for (name, d_out, d_in, zeros, _), found in zip(tensors, positions, strict=True):
        assert len(found) == zeros
        sha.update(struct.pack("<H", len(name)) + name + struct.pack("<IIQ", d_out, d_in, zeros))
        wide = "Q" if d_out * d_in > 1 << 32 else "I"
        sha.update(struct.pack(f"<{zeros}{wide}", *found))
    assert sha.digest() == digest
    return {
        "model": table[:id_length].decode(),
        "metadata": json.loads(table[at:]),
        "positions": {t[0].decode(): p for t, p in zip(tensors, positions, strict=True)},
    }


def gaps(payload: bytes, tensors: list) -> list[list[int]]:
    raw = zstandard.decompress(payload)
    half = len(raw) // 2
    symbols = iter([low | high << 8 for low, high in zip(raw[:half], raw[half:], strict=True)])
    result = []
    for _, _, _, zeros, _ in tensors:
        found, at = [], 0
        while len(found) < zeros:
            symbol = next(symbols)
            at += symbol
            if symbol < 65535:
                found.append(at)
                at += 1
        result.append(found)
    assert next(symbols, None) is None
    return result


def packbits(payload: bytes, tensors: list) -> list[list[int]]:
    result, at = [], 0
    for _, d_out, d_in, _, size in tensors:
        raw = zstandard.decompress(payload[at : at + size])
        at += size
        bits = [byte >> (7 - i) & 1 for byte in raw for i in range(8)][: d_out * d_in]
        result.append([i for i, bit in enumerate(bits) if not bit])
    return result


def random_mask(seed: int, shapes, sparsity: float) -> bmt_core.Mask:
    rng = np.random.default_rng(seed)
    tensors = []
    for index, shape in enumerate(shapes):
        numel = shape[0] * shape[1]
        positions = np.sort(rng.choice(numel, int(numel * sparsity), replace=False))
        tensors.append(bmt_core.TensorMask(f"t{index}", shape, positions))
    return bmt_core.Mask(bmt_core.Base("modèl", "cd" * 32), tuple(tensors), {"seed": seed})


@pytest.mark.parametrize("codec", ["gaps", "packbits"])
@pytest.mark.parametrize(
    ("shapes", "sparsity"),
    [
        ([(3, 5)], 0.4),
        ([(7, 9), (16, 8), (1, 1)], 0.1),
        ([(400, 500), (600, 700)], 1e-5),  # gaps beyond 65535: escapes, also across tensors
        ([(300, 300), (300, 300)], 0.0),
        ([(20, 20)], 1.0),
        ([], 0.0),
    ],
)
def test_a_second_reader_agrees(codec, shapes, sparsity):
    for seed in range(5):
        mask = random_mask(seed, shapes, sparsity)
        data = bmt_core.encode(mask, codec)
        second = read(data)
        assert second["positions"] == {t.name: t.positions.tolist() for t in mask.tensors}
        assert second["model"] == mask.base.model_id
        assert second["metadata"] == mask.metadata
        ours = bmt_core.decode(data)
        assert ours == mask
        assert ours.metadata == mask.metadata
        assert bmt_core.encode(mask, codec) == data, "one mask, one file"
    assert bmt_core.encode(mask, "gaps") != data or codec == "gaps"


def test_the_pages_example_is_the_file():
    dump = re.search(r"```\n(0000 .*?)```", PAGE.read_text(), re.DOTALL)
    assert dump is not None
    rows = dump.group(1).strip().splitlines()
    example = bytes.fromhex("".join(r.split("  ", 1)[1].replace(" ", "") for r in rows))
    tensor = bmt_core.TensorMask("w", (2, 4), np.array([1, 6], np.uint32))
    mask = bmt_core.Mask(bmt_core.Base("m", "ab" * 32), (tensor,), {})
    assert bmt_core.encode(mask) == example
    assert read(example)["positions"] == {"w": [1, 6]}


def test_the_base_fingerprint_is_the_pages(tmp_path):
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
