"""A reader of `.bmt` files made from docs/reference/format.md alone, without the project's code."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

import zstandard


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
