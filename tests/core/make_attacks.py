"""Write tests/assets/attacks: hostile and damaged `.bmt` files, and their manifest.json.

No code of the project and no compressor is used, so the bytes are the same everywhere: files are
built from docs/reference/format.md, zstd frames by hand from RFC 8878 with stored and run-length
blocks.

    python tests/core/make_attacks.py
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "attacks"
BASE = bytes([0xAB]) * 32
MIB = 1 << 20
_M = (1 << 64) - 1
_P = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def xxh64(data: bytes) -> int:
    """XXH64, the checksum of zstd frames, which store its low four bytes."""

    def rot(x: int, n: int) -> int:
        return (x << n | x >> (64 - n)) & _M

    def mix(acc: int, lane: int) -> int:
        return rot((acc + lane * _P[1]) & _M, 31) * _P[0] & _M

    at = 0
    if len(data) >= 32:
        lanes = [(_P[0] + _P[1]) & _M, _P[1], 0, -_P[0] & _M]
        while len(data) - at >= 32:
            lanes = [mix(v, w) for v, w in zip(lanes, struct.unpack_from("<4Q", data, at))]  # noqa: B905
            at += 32
        acc = sum(rot(v, n) for v, n in zip(lanes, (1, 7, 12, 18), strict=True)) & _M
        for v in lanes:
            acc = ((acc ^ mix(0, v)) * _P[0] + _P[3]) & _M
    else:
        acc = _P[4]
    acc = (acc + len(data)) & _M
    while len(data) - at >= 8:
        acc = rot(acc ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * _P[0] + _P[3] & _M
        at += 8
    if len(data) - at >= 4:
        acc ^= struct.unpack_from("<I", data, at)[0] * _P[0] & _M
        acc = rot(acc, 23) * _P[1] + _P[2] & _M
        at += 4
    for byte in data[at:]:
        acc = rot(acc ^ byte * _P[4] & _M, 11) * _P[0] & _M
    for shift, prime in ((33, _P[1]), (29, _P[2]), (32, 1)):
        acc = (acc ^ acc >> shift) * prime & _M
    return acc


def block(kind: int, size: int, data: bytes, last: bool) -> bytes:
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + data


def run(byte: int, size: int) -> bytes:
    """Run-length blocks of 128 KiB that expand to `size` times `byte`."""
    step = 1 << 17
    pieces = [min(step, size - at) for at in range(0, size, step)]
    return b"".join(
        block(1, n, bytes([byte]), at == len(pieces) - 1) for at, n in enumerate(pieces)
    )


def frame(
    content: bytes = b"",
    *,
    blocks: bytes | None = None,
    size: int | None = -1,
    checksum: int | None = -1,
    window: int | None = None,
    dictionary: int = 0,
    magic: int = 0xFD2FB528,
) -> bytes:
    """zstd frame. -1: the correct value; None: absent. window: the descriptor byte."""
    head = (0xC0 if size is not None else 0) | (0x20 if window is None else 0)
    head |= (0x04 if checksum is not None else 0) | (3 if dictionary else 0)
    out = struct.pack("<IB", magic, head)
    if window is not None:
        out += bytes([window])
    if dictionary:
        out += struct.pack("<I", dictionary)
    if size is not None:
        out += struct.pack("<Q", len(content) if size == -1 else size)
    out += block(0, len(content), content, True) if blocks is None else blocks
    if checksum is not None:
        out += struct.pack("<I", xxh64(content) & 0xFFFFFFFF if checksum == -1 else checksum)
    return out


def planes(*symbols: int) -> bytes:
    return bytes(s & 0xFF for s in symbols) + bytes(s >> 8 for s in symbols)


Tensor = tuple[bytes, int, int, list[int]]


def digest(tensors: list[Tensor]) -> bytes:
    sha = hashlib.sha256(b"bmt mask digest v1\0" + BASE + struct.pack("<I", len(tensors)))
    for name, d_out, d_in, positions in tensors:
        sha.update(struct.pack("<H", len(name)) + name)
        sha.update(struct.pack("<IIQ", d_out, d_in, len(positions)))
        width = "Q" if d_out * d_in > 1 << 32 else "I"
        sha.update(struct.pack(f"<{len(positions)}{width}", *positions))
    return sha.digest()


def entry(name: bytes, d_out: int, d_in: int, zeros: int, own: int = 0) -> bytes:
    return struct.pack("<H", len(name)) + name + struct.pack("<IIQQ", d_out, d_in, zeros, own)


def file(
    payload: bytes,
    entries: bytes,
    count: int = 1,
    *,
    mask_digest: bytes = bytes(32),
    codec: int = 1,
    magic: bytes = b"\x89BMT\r\n\x1a\n",
    version: int = 1,
    flags: int = 0,
    reserved: tuple[bytes, int] = (bytes(3), 0),
    model: bytes = b"m",
    model_length: int | None = None,
    metadata: bytes = b"{}",
    metadata_length: int | None = None,
    table_length: int | None = None,
    payload_length: int | None = None,
    crc: int | None = None,
    payload_crc: int | None = None,
) -> bytes:
    def stated(value: int | None, data: bytes) -> int:
        return len(data) if value is None else value

    table = model + entries + metadata
    prefix = magic + struct.pack("<HHB", version, flags, codec) + reserved[0]
    prefix += struct.pack(
        "<III", stated(table_length, table), count, stated(metadata_length, metadata)
    )
    prefix += struct.pack("<HH", stated(model_length, model), reserved[1]) + BASE + mask_digest
    prefix += struct.pack("<Q", stated(payload_length, payload))
    crc = zlib.crc32(prefix + table) if crc is None else crc
    payload_crc = zlib.crc32(payload) if payload_crc is None else payload_crc
    return prefix + struct.pack("<II", crc, payload_crc) + table + payload


# Stable code of each error class.
CODES = {
    "BadMagic": "bad_magic",
    "UnsupportedVersion": "unsupported_version",
    "Truncated": "truncated",
    "TrailingBytes": "trailing_bytes",
    "BadHeader": "bad_header",
    "BadChecksum": "bad_checksum",
    "BadMetadata": "bad_metadata",
    "PayloadError": "bad_payload",
    "PositionsError": "positions",
    "DigestMismatch": "digest_mismatch",
    "TooLarge": "too_large",
    "TooManyZeros": "too_many_zeros",
    "BaseMismatch": "base_mismatch",
}

# A 2 × 4 matrix with zeros at 1 and 6: the example of docs/reference/format.md.
W: Tensor = (b"w", 2, 4, [1, 6])
ENTRY = entry(b"w", 2, 4, 2)
GOOD = digest([W])
GAPS = planes(1, 4)
BITS = bytes([0b10111101])


def gaps(payload: bytes = frame(GAPS), entries: bytes = ENTRY, count: int = 1, **more) -> bytes:
    return file(payload, entries, count, **{"mask_digest": GOOD, **more})


def bits(payload: bytes, entries: bytes | None = None, **more) -> bytes:
    entries = entry(b"w", 2, 4, 2, len(payload)) if entries is None else entries
    return file(payload, entries, **{"mask_digest": GOOD, "codec": 2, **more})


def cases() -> dict[str, tuple[str | None, str | None, bytes]]:
    """File name -> error class, its `field`, and the bytes. No class: a valid file."""
    big = entry(b"w", 1 << 20, 1 << 20, 0)
    deep = b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"
    tall = [(b"t", 1000, 1000, [70000, 999999])]
    wide = (1 << 31) - 1
    honest = 512 * MIB
    found: dict[str, tuple[str | None, str | None, bytes]] = {
        # Valid files: controls for the others, which differ in one way.
        "good-gaps": (None, None, gaps()),
        "good-packbits": (None, None, bits(frame(BITS))),
        "good-escapes": (
            None,
            None,
            gaps(
                frame(planes(65535, 4465, *[65535] * 14, 12508)),
                entry(b"t", 1000, 1000, 2),
                mask_digest=digest(tall),
            ),
        ),
        "good-nothing": (
            None,
            None,
            gaps(frame(), entry(b"w", 2, 4, 0), mask_digest=digest([(b"w", 2, 4, [])])),
        ),
        "good-rows": (
            None,
            None,
            gaps(
                entries=entry(b"w[6:8]", 2, 4, 2),
                mask_digest=digest([(b"w[6:8]", 2, 4, [1, 6])]),
            ),
        ),
        "good-no-tensors": (None, None, gaps(frame(), b"", 0, mask_digest=digest([]))),
        # The fixed header.
        "magic-empty-file": ("BadMagic", "magic", b""),
        "magic-zip": ("BadMagic", "magic", b"PK\x03\x04" + bytes(200)),
        "magic-newlines-translated": ("BadMagic", "magic", gaps(magic=b"\x89BMT\n\x1a\n\n")),
        "version-2": ("UnsupportedVersion", "version", gaps(version=2)),
        "version-0": ("UnsupportedVersion", "version", gaps(version=0)),
        "flags": ("UnsupportedVersion", "flags", gaps(flags=0x8000)),
        "codec-0": ("UnsupportedVersion", "codec", gaps(codec=0)),
        "codec-3": ("UnsupportedVersion", "codec", gaps(codec=3)),
        "reserved-after-codec": ("BadHeader", "reserved", gaps(reserved=(b"\0\1\0", 0))),
        "reserved-after-lengths": ("BadHeader", "reserved", gaps(reserved=(bytes(3), 256))),
        "table-length-0": (
            "BadHeader",
            "model_id_length",
            file(b"", b"", 1, model=b"", metadata=b"", model_length=1, metadata_length=2),
        ),
        "table-length-4-gib": ("BadHeader", "header_length", gaps(table_length=0xFFFFFFFF)),
        "table-length-beyond-file": ("Truncated", "header", gaps(table_length=2_000_000)),
        "tensors-4-billion": ("BadHeader", "tensors", gaps(count=0xFFFFFFFF)),
        "tensors-32769": ("BadHeader", "tensors", gaps(count=32769)),
        "tensors-more-than-there": ("BadHeader", "tensor table", gaps(count=2)),
        "tensors-fewer-than-there": ("BadHeader", "header_length", gaps(count=0)),
        "metadata-length-4-gib": (
            "BadHeader",
            "metadata_length",
            gaps(metadata_length=0xFFFFFFFF),
        ),
        "metadata-length-beyond-table": (
            "BadHeader",
            "model_id_length",
            gaps(metadata_length=60_000),
        ),
        "model-id-length-too-large": ("BadHeader", "model_id_length", gaps(model_length=0xFFFF)),
        "model-id-beyond-table": ("BadHeader", "model_id_length", gaps(model_length=1000)),
        "model-id-too-large": ("BadHeader", "model_id_length", gaps(model=b"m" * 1025)),
        "model-id-not-utf-8": ("BadHeader", "model_id", gaps(model=b"\xff\xfe")),
        "model-id-surrogate": ("BadHeader", "model_id", gaps(model=b"\xed\xa0\x80")),
        "crc-wrong": ("BadChecksum", "crc32", gaps(crc=0)),
        "crc-of-payload-wrong": ("BadChecksum", "payload crc32", gaps(payload_crc=0)),
        # The bit of a zstd frame header that decoders ignore.
        "crc-of-payload-unused-bit": (
            "BadChecksum",
            "payload crc32",
            gaps(
                frame(GAPS)[:4] + bytes([frame(GAPS)[4] | 16]) + frame(GAPS)[5:],
                payload_crc=zlib.crc32(frame(GAPS)),
            ),
        ),
        "payload-length-beyond-file": ("Truncated", "payload", gaps(payload_length=1 << 40)),
        "payload-length-0": ("TrailingBytes", "file", gaps(payload_length=0)),
        "trailing-byte": ("TrailingBytes", "file", gaps() + b"\0"),
        "trailing-zip": ("TrailingBytes", "file", gaps() + b"PK\x05\x06" + bytes(18)),
        "cut-in-fixed-header": ("Truncated", "fixed header", gaps()[:60]),
        "cut-in-table": ("Truncated", "header", gaps()[:120]),
        "cut-in-payload": ("Truncated", "payload", gaps()[:-1]),
        "digest-wrong": ("DigestMismatch", "digest", gaps(mask_digest=bytes(32))),
        "digest-of-other-positions": (
            "DigestMismatch",
            "digest",
            gaps(mask_digest=digest([(b"w", 2, 4, [1, 7])])),
        ),
        # The table.
        "name-empty": ("BadHeader", "tensor", gaps(entries=entry(b"", 2, 4, 2))),
        "name-too-long": ("BadHeader", "tensor", gaps(entries=entry(b"n" * 513, 2, 4, 2))),
        "name-beyond-table": (
            "BadHeader",
            "tensor name",
            gaps(entries=struct.pack("<H", 0xFFFF) + ENTRY[2:]),
        ),
        "name-not-ascii": ("BadHeader", "tensor", gaps(entries=entry("ä".encode(), 2, 4, 2))),
        "name-with-space": ("BadHeader", "tensor", gaps(entries=entry(b"a b", 2, 4, 2))),
        "name-with-newline": ("BadHeader", "tensor", gaps(entries=entry(b"a\n", 2, 4, 2))),
        "name-with-nul": ("BadHeader", "tensor", gaps(entries=entry(b"a\0", 2, 4, 2))),
        "names-descend": (
            "BadHeader",
            "name",
            gaps(entries=entry(b"w", 2, 4, 1) + entry(b"v", 2, 4, 1), count=2),
        ),
        "name-twice": ("BadHeader", "name", gaps(entries=entry(b"w", 2, 4, 1) * 2, count=2)),
        # Rows of a tensor: as many as the shape says, each once.
        "rows-of-another-count": ("BadHeader", "tensor", gaps(entries=entry(b"w[0:3]", 2, 4, 2))),
        "rows-that-descend": ("BadHeader", "tensor", gaps(entries=entry(b"w[3:1]", 2, 4, 2))),
        "rows-twice": (
            "BadHeader",
            "name",
            gaps(entries=entry(b"w[0:2]", 2, 4, 1) + entry(b"w[1:3]", 2, 4, 1), count=2),
        ),
        "rows-of-a-whole-tensor": (
            "BadHeader",
            "name",
            gaps(entries=entry(b"w", 2, 4, 1) + entry(b"w[0:2]", 2, 4, 1), count=2),
        ),
        "shape-0": ("BadHeader", "tensor", gaps(entries=entry(b"w", 0, 4, 0))),
        "shape-2-31": ("BadHeader", "tensor", gaps(entries=entry(b"w", 1 << 31, 1, 0))),
        "shape-product-wraps-32-bits": (
            "BadHeader",
            "w zeros",
            gaps(entries=entry(b"w", 1 << 16, (1 << 16) + 1, (1 << 63) + 2)),
        ),
        "shape-largest": (
            "TooLarge",
            "payload",
            bits(p := frame(size=(wide * wide + 7) // 8), entry(b"w", wide, wide, 0, len(p))),
        ),
        "zeros-more-than-weights": ("BadHeader", "w zeros", gaps(entries=entry(b"w", 2, 4, 9))),
        "zeros-2-64": ("BadHeader", "w zeros", gaps(entries=entry(b"w", 2, 4, (1 << 64) - 1))),
        "zeros-a-billion-of-a-billion": (
            "TooLarge",
            "payload",
            gaps(entries=entry(b"w", 1 << 15, 1 << 15, 1 << 30)),
        ),
        "base-unexpected": ("BaseMismatch", "base.fingerprint", gaps()),
        "base-has-no-such-tensor": (
            "BaseMismatch",
            "name",
            gaps(entries=entry(b"v", 2, 4, 2)),
        ),
        "base-has-no-such-rows": (
            "BaseMismatch",
            "name",
            gaps(entries=entry(b"w[0:2]", 2, 4, 2)),
        ),
        "base-has-another-shape": ("BaseMismatch", "shape", gaps(entries=entry(b"w", 4, 2, 2))),
        "too-many-zeros": ("TooManyZeros", "sparsity", gaps()),
        "own-frame-under-gaps": ("BadHeader", "payload_bytes", gaps(entries=entry(*W[:3], 2, 1))),
        "own-frame-beyond-payload": (
            "BadHeader",
            "payload_bytes",
            bits(frame(BITS), entry(*W[:3], 2, 1 << 40)),
        ),
        "own-frames-sum-wraps": (
            "BadHeader",
            "payload_bytes",
            bits(
                frame(BITS),
                entry(b"v", 2, 4, 2, (1 << 64) - 1) + entry(b"w", 2, 4, 2, len(frame(BITS)) + 1),
                count=2,
            ),
        ),
        # The metadata.
        **{
            f"metadata-{name}": ("BadMetadata", "metadata", gaps(metadata=data))
            for name, data in {
                "empty": b"",
                "nan": b'{"a":NaN}',
                "infinity": b'{"a":-Infinity}',
                "float-overflows": b'{"a":1e999}',
                "key-twice": b'{"a":1,"a":2}',
                "key-twice-inside": b'{"a":{"b":1,"b":1}}',
                "array": b"[]",
                "string": b'"a"',
                "null": b"null",
                "not-utf-8": b'{"a":"\xff"}',
                "utf-16": '{"a":1}'.encode("utf-16"),
                "byte-order-mark": b"\xef\xbb\xbf{}",
                "half-surrogate": b'{"a":"\\ud800"}',
                "half-surrogate-key": b'{"\\udfff":1}',
                "too-deep": deep,
                "bottomless": b"[" * 65536,
                "bottomless-objects": (b'{"a":' * 13107),
                "huge-integer": b'{"a":' + b"1" * 5000 + b"}",
                "cut": b'{"a":',
                "two-values": b"{}{}",
                "single-quotes": b"{'a':1}",
                "trailing-comma": b'{"a":1,}',
                "control-character": b'{"a":"\n"}',
            }.items()
        },
        "metadata-too-large": (
            "BadHeader",
            "metadata_length",
            gaps(metadata=b'{"a":"' + b"x" * 65536 + b'"}'),
        ),
        # The frame.
        "frame-none": ("PayloadError", "payload", gaps(b"")),
        "frame-gzip": ("PayloadError", "payload", gaps(b"\x1f\x8b\x08" + bytes(30))),
        "frame-skippable": (
            "PayloadError",
            None,
            gaps(struct.pack("<II", 0x184D2A50, 4) + b"evil"),
        ),
        "frame-skippable-first": (
            "PayloadError",
            None,
            gaps(struct.pack("<II", 0x184D2A5F, 4) + b"evil" + frame(GAPS)),
        ),
        "frame-magicless": ("PayloadError", "payload", gaps(frame(GAPS)[4:])),
        "frame-old-zstd": ("PayloadError", "payload", gaps(frame(GAPS, magic=0xFD2FB527))),
        "frame-reserved-bit": (
            "PayloadError",
            "payload",
            gaps(frame(GAPS)[:4] + bytes([frame(GAPS)[4] | 8]) + frame(GAPS)[5:]),
        ),
        "frame-without-size": (
            "PayloadError",
            "content_size",
            gaps(frame(GAPS, size=None, window=0)),
        ),
        "frame-without-checksum": ("PayloadError", "checksum", gaps(frame(GAPS, checksum=None))),
        "frame-checksum-wrong": ("PayloadError", "payload", gaps(frame(GAPS, checksum=0))),
        "frame-dictionary": ("PayloadError", "dictionary", gaps(frame(GAPS, dictionary=7))),
        "frame-window-16-mib": ("PayloadError", "window", gaps(frame(GAPS, window=(14 << 3)))),
        "frame-window-2-tib": ("PayloadError", "payload", gaps(frame(GAPS, window=0xFF))),
        "frame-states-more": (
            "PayloadError",
            "payload",
            gaps(frame(planes(1), size=4, window=0)),
        ),
        "frame-states-less": (
            "PayloadError",
            "payload",
            gaps(frame(planes(1, 4, 0), size=4, window=0)),
        ),
        "frame-states-1-tib": ("PayloadError", "content_size", gaps(frame(GAPS, size=1 << 40))),
        "frame-states-2-63": ("PayloadError", "content_size", gaps(frame(GAPS, size=1 << 63))),
        "frame-states-odd": (
            "PayloadError",
            "content_size",
            gaps(frame(b"\1\4\0"), entry(b"w", 2, 4, 1)),
        ),
        "frame-second": ("PayloadError", "payload", gaps(frame(GAPS) + frame(GAPS))),
        "frame-second-empty": ("PayloadError", "payload", gaps(frame(GAPS) + frame())),
        "frame-junk-after": ("PayloadError", "payload", gaps(frame(GAPS) + b"junk")),
        "frame-cut": ("PayloadError", "payload", gaps(frame(GAPS)[:-5])),
        "frame-cut-in-checksum": ("PayloadError", "payload", gaps(frame(GAPS)[:-1])),
        "frame-cut-in-its-header": ("PayloadError", "payload", gaps(frame(GAPS)[:7])),
        "frame-block-reserved": (
            "PayloadError",
            "payload",
            gaps(frame(GAPS, blocks=block(3, 4, GAPS, True))),
        ),
        **{
            f"empty-frame-{name}": (
                "PayloadError",
                None,
                gaps(data, entry(b"w", 2, 4, 0), mask_digest=digest([(b"w", 2, 4, [])])),
            )
            for name, data in {
                "junk-after": frame() + b"junk",
                "junk-far-after": frame() + bytes(1000),
                # 64 bytes: the last input of a reader that uses powers of two is complete.
                "junk-after-64": bytes.fromhex("28b52ffd2400") + bytes(51) + frame()[13:] + b"junk",
                "second": frame() + frame(),
                "checksum-wrong": frame(checksum=0),
                "cut": frame()[:-1],
                "header-alone": frame()[:13],
                "not-empty": frame(GAPS, size=0, window=0),
                "bomb": frame(blocks=run(0, 64 * MIB), size=0, window=13 << 3, checksum=0),
            }.items()
        },
        "bomb-without-size": (
            "PayloadError",
            "content_size",
            gaps(frame(blocks=run(0, honest), size=None, window=13 << 3, checksum=0), big),
        ),
        "bomb-with-size": (
            "PayloadError",
            "content_size",
            gaps(frame(blocks=run(0, honest), size=honest, window=13 << 3, checksum=0), big),
        ),
        "bomb-that-lies": (
            "PayloadError",
            "payload",
            gaps(frame(blocks=run(0, honest), size=4, window=13 << 3, checksum=0)),
        ),
        "bomb-packbits": (
            "TooLarge",
            "payload",
            bits(
                p := frame(blocks=run(0, honest), size=honest, window=13 << 3, checksum=0),
                entry(b"w", 1 << 16, 1 << 16, 0, len(p)),
            ),
        ),
        "bomb-of-all-zeros": (
            "PositionsError",
            "zeros",
            bits(
                p := frame(
                    bytes(MIB),
                    blocks=run(0, MIB),
                    window=13 << 3,
                ),
                entry(b"w", 1 << 12, 1 << 11, 5, len(p)),
            ),
        ),
        "bomb-of-escapes": (
            "PositionsError",
            "zeros",
            gaps(
                frame(b"\xff" * MIB, blocks=run(0xFF, MIB), window=13 << 3),
                entry(b"w", 1 << 20, 1 << 20, 0),
            ),
        ),
        # The positions.
        "gaps-beyond-tensor": ("PositionsError", "positions", gaps(frame(planes(1, 6)))),
        "gaps-far-beyond-tensor": (
            "PositionsError",
            "positions",
            gaps(frame(planes(60000, 60000))),
        ),
        "gaps-into-next-tensor": (
            "PositionsError",
            "positions",
            gaps(
                frame(planes(1, 6, 0)),
                entry(b"v", 2, 4, 2) + entry(b"w", 2, 4, 1),
                count=2,
            ),
        ),
        "gaps-wrap-32-bits": (
            "PositionsError",
            "positions",
            gaps(
                frame(planes(*[65534] * 65538)),
                entry(b"w", 1 << 10, 1 << 10, 65538),
            ),
        ),
        "gaps-too-few": ("PayloadError", "content_size", gaps(frame(planes(1)))),
        "gaps-too-many": ("PayloadError", "content_size", gaps(frame(planes(1, 2, 1)))),
        "gaps-escape-for-a-zero": ("PositionsError", "zeros", gaps(frame(planes(65535, 4)))),
        "gaps-escape-at-the-end": (
            "PositionsError",
            "zeros",
            gaps(frame(planes(1, 65535)), entry(b"w", 1000, 1000, 1)),
        ),
        "gaps-escape-and-nothing-else": (
            "PositionsError",
            "zeros",
            gaps(
                frame(planes(65535)),
                entry(b"w", 1000, 1000, 0),
                mask_digest=digest([(b"w", 1000, 1000, [])]),
            ),
        ),
        "gaps-fewer-zeros-than-announced": (
            "PositionsError",
            "zeros",
            gaps(frame(planes(65535, 1, 65535, 1)), entry(b"w", 1000, 1000, 3)),
        ),
        "packbits-padding-set": (
            "PositionsError",
            "padding",
            bits(p := frame(bytes([0b10111111])), entry(b"w", 1, 7, 1, len(p))),
        ),
        "packbits-count-less": ("PositionsError", "zeros", bits(frame(bytes([0b10111111])))),
        "packbits-count-more": ("PositionsError", "zeros", bits(frame(bytes([0b10111001])))),
        "packbits-too-short": ("PayloadError", "content_size", bits(frame())),
        "packbits-too-long": ("PayloadError", "content_size", bits(frame(BITS * 2))),
        "packbits-second-frame-inside": ("PayloadError", "payload", bits(frame(BITS) * 2)),
        "packbits-own-frame-empty": (
            "PayloadError",
            "payload",
            bits(
                frame(BITS),
                entry(b"v", 2, 4, 2, 0) + entry(b"w", 2, 4, 2, len(frame(BITS))),
                count=2,
            ),
        ),
    }
    return found


def manifest() -> dict[str, dict[str, str | None]]:
    return {
        f"{name}.bmt": {"error": error, "code": CODES[error] if error else None, "field": field}
        for name, (error, field, _) in cases().items()
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (_, _, data) in cases().items():
        (FOLDER / f"{name}.bmt").write_bytes(data)
    (FOLDER / "manifest.json").write_text(json.dumps(manifest(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
