"""Header of a `.bmt` file: all but the positions, as specified in `docs/reference/format.md`."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bmt_core import codecs
from bmt_core.errors import (
    BadChecksum,
    BadHeader,
    BadMagic,
    BadMetadata,
    MaskError,
    TrailingBytes,
    Truncated,
    UnsupportedVersion,
)
from bmt_core.limits import MAX_HEADER_BYTES, Limits
from bmt_core.mask import (
    MAX_METADATA,
    MAX_MODEL_ID,
    MAX_TENSORS,
    Base,
    Mask,
    check_distinct,
    check_tensor,
    dump_metadata,
)

MAGIC = b"\x89BMT\r\n\x1a\n"
VERSION = 1
# magic, version, flags, codec, reserved, header length, tensors, metadata length, model id length,
# reserved, base fingerprint, mask digest, payload length | then the crc32s of header and payload
_PREFIX = struct.Struct("<8sHHB3xIIIHH32s32sQ")
_CRC = struct.Struct("<II")
FIXED = _PREFIX.size + _CRC.size
_TENSOR = struct.Struct("<IIQQ")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Table entry of one tensor. payload_bytes: size of its own frame, 0 under `gaps`."""

    name: str
    shape: tuple[int, int]
    zeros: int
    payload_bytes: int

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Header:
    """Parsed header: everything in a `.bmt` file except the positions. Sizes are bytes."""

    version: int
    codec: str
    base: Base
    digest: str
    tensors: tuple[TensorHeader, ...]
    metadata: Mapping[str, Any]
    payload_offset: int
    payload_bytes: int

    @property
    def zeros(self) -> int:
        return sum(t.zeros for t in self.tensors)

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of the named tensors' weights that the mask sets to zero."""
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def file_bytes(self) -> int:
        return self.payload_offset + self.payload_bytes


def pack_header(mask: Mask, codec: int, sizes: Sequence[int], payload: bytes) -> bytes:
    """Encode fixed header and table. sizes: bytes of each tensor's own frame, 0 under `gaps`."""
    model_id = mask.base.model_id.encode()
    metadata = dump_metadata(mask.metadata)
    table = bytearray(model_id)
    for t, size in zip(mask.tensors, sizes, strict=True):
        name = t.name.encode("ascii")
        table += struct.pack("<H", len(name)) + name + _TENSOR.pack(*t.shape, t.zeros, size)
    table += metadata
    prefix = _PREFIX.pack(
        MAGIC,
        VERSION,
        0,
        codec,
        len(table),
        len(mask.tensors),
        len(metadata),
        len(model_id),
        0,
        bytes.fromhex(mask.base.fingerprint),
        bytes.fromhex(mask.digest),
        len(payload),
    )
    crc = zlib.crc32(table, zlib.crc32(prefix))
    return prefix + _CRC.pack(crc, zlib.crc32(payload)) + bytes(table)


def inspect(data: bytes | memoryview, *, limits: Limits | None = None) -> Header:
    """Parse and validate the header without decoding positions. Raises FormatError, LimitError."""
    view = as_bytes(data)
    limits = limits or Limits()
    limits.check_file(len(view))
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)] or not view:
        raise BadMagic(
            f"not a .bmt file: it starts with {bytes(view[:8])!r}",
            field="magic",
            value=bytes(view[:8]),
            bound=MAGIC,
        )
    _need(view, 0, FIXED, "fixed header")
    fields = _PREFIX.unpack_from(view)
    _, version, flags, number, length, count, n_meta, n_id, reserved, base, digest, payload = fields
    crc, payload_crc = _CRC.unpack_from(view, _PREFIX.size)
    if version != VERSION:
        raise UnsupportedVersion(
            f"version {version} is unknown; this reader reads {VERSION}. Update bmt-adapters",
            field="version",
            value=version,
            bound=VERSION,
        )
    if length > MAX_HEADER_BYTES:
        raise _bad("header_length", length, MAX_HEADER_BYTES)
    _need(view, FIXED, length, "header")
    if zlib.crc32(view[FIXED : FIXED + length], zlib.crc32(view[: _PREFIX.size])) != crc:
        raise BadChecksum("the header is damaged: its checksum does not match", field="crc32")
    if flags:
        raise UnsupportedVersion(
            f"flags {flags:#06x} are unknown; this reader reads none. Update bmt-adapters",
            field="flags",
            value=flags,
            bound=0,
        )
    if reserved or any(view[13:16]):
        raise _bad("reserved", (bytes(view[13:16]), reserved), 0)
    if number not in codecs.CODEC_NAMES:
        raise UnsupportedVersion(
            f"codec {number} is unknown; this reader reads {sorted(codecs.CODEC_NAMES)}. "
            "Update bmt-adapters",
            field="codec",
            value=number,
        )
    if count > MAX_TENSORS:
        raise _bad("tensors", count, MAX_TENSORS)
    if n_meta > MAX_METADATA:
        raise _bad("metadata_length", n_meta, MAX_METADATA)
    if n_id > MAX_MODEL_ID:
        raise _bad("model_id_length", n_id, MAX_MODEL_ID)
    end = FIXED + length
    if len(view) - end < payload:
        raise Truncated(
            f"the payload is {payload} bytes, but the file has {len(view) - end} left",
            field="payload",
            value=len(view) - end,
            bound=payload,
        )
    if len(view) - end > payload:
        raise TrailingBytes(
            f"{len(view) - end - payload} bytes follow the payload",
            field="file",
            value=len(view),
            bound=end + payload,
        )
    # zstd's own checksum covers the content, which some bits of a frame do not affect.
    if zlib.crc32(view[end:]) != payload_crc:
        raise BadChecksum(
            "the payload is damaged: its checksum does not match", field="payload crc32"
        )
    table = bytes(view[FIXED:end])
    model_id, tensors, metadata = _table(table, n_id, count, n_meta)
    header = Header(
        version=version,
        codec=codecs.CODEC_NAMES[number],
        base=Base(model_id, base.hex()),
        digest=digest.hex(),
        tensors=tensors,
        metadata=metadata,
        payload_offset=end,
        payload_bytes=payload,
    )
    framed = sum(t.payload_bytes for t in tensors)
    if framed != (0 if header.codec == "gaps" else payload):
        raise _bad("payload_bytes", framed, 0 if header.codec == "gaps" else payload)
    for t in tensors:
        limits.check_tensor(t.name, t.shape)
    limits.check_sparsity(header.zeros, header.numel)
    # Memory of the positions under either codec: a frame of many zeros may have few bytes.
    limits.check_raw(2 * header.zeros)
    return header


def _table(
    table: bytes, n_id: int, count: int, n_meta: int
) -> tuple[str, tuple[TensorHeader, ...], dict[str, Any]]:
    at, stop = n_id, len(table) - n_meta
    if at > stop:
        raise _bad("model_id_length", n_id, len(table))
    try:
        model_id = table[:at].decode()
    except UnicodeDecodeError:
        raise _bad("model_id", table[:at], "UTF-8") from None
    tensors: list[TensorHeader] = []
    for index in range(count):
        if stop - at < 2:
            raise _bad("tensor table", len(table), "room for every tensor")
        size = int.from_bytes(table[at : at + 2], "little")
        at += 2
        if stop - at < size + _TENSOR.size:
            raise _bad("tensor name", size, stop - at)
        raw = table[at : at + size]
        at += size
        d_out, d_in, zeros, own = _TENSOR.unpack_from(table, at)
        at += _TENSOR.size
        try:
            name = raw.decode("ascii")
            check_tensor(name, (d_out, d_in))
        except (MaskError, UnicodeDecodeError) as error:
            raise BadHeader(f"tensor {index}: {error}", field="tensor") from None
        if tensors and name <= tensors[-1].name:
            raise BadHeader(
                f"tensor {name!r} follows {tensors[-1].name!r}; names must ascend strictly",
                field="name",
                value=name,
            )
        if zeros > d_out * d_in:
            raise _bad(f"{name} zeros", zeros, d_out * d_in)
        tensors.append(TensorHeader(name, (d_out, d_in), zeros, own))
    if at != stop:
        raise _bad("header_length", len(table), at + n_meta)
    try:
        check_distinct(t.name for t in tensors)
    except MaskError as error:
        raise BadHeader(str(error), field="name") from None
    return model_id, tuple(tensors), _metadata(table[stop:])


def _metadata(data: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("a key occurs twice")
        return result

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=pairs, parse_constant=constant)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise BadMetadata(f"metadata: {error}", field="metadata") from None
    dump_metadata(value)
    return value


def as_bytes(data: bytes | memoryview) -> memoryview:
    """View any buffer as a one-dimensional array of bytes."""
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _need(view: memoryview, at: int, size: int, field: str) -> None:
    if len(view) - at < size:
        raise Truncated(
            f"the {field} is {size} bytes, but the file has {len(view) - at} left",
            field=field,
            value=len(view) - at,
            bound=size,
        )


def _bad(field: str, value: Any, bound: Any) -> BadHeader:
    return BadHeader(
        f"{field} is {value!r}; the bound is {bound!r}", field=field, value=value, bound=bound
    )
