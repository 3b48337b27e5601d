"""Safe compression and decompression of the zstd frames of a `.bmt` file.

The limits of decompressors are not enough: python-zstandard ignores `max_output_size` if the frame
states a content size, and its streaming interfaces return partial data of a truncated frame
without an error. Therefore the frame's own header is checked before one call decompresses it.
"""

from __future__ import annotations

import zstandard

from bmt_core.errors import PayloadError
from bmt_core.limits import Limits

MAX_WINDOW = 1 << 23
_UNKNOWN_SIZE = (1 << 64) - 1


def compress(raw: bytes, level: int) -> bytes:
    """Compress into one frame with content size and checksum. Deterministic for one libzstd."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(raw),
        window_log=min(23, max(10, len(raw).bit_length())),
        write_content_size=1,
        write_checksum=1,
        write_dict_id=0,
        threads=0,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


def expand(frame: bytes | memoryview, expected: int | None, limits: Limits) -> bytes:
    """Decompress a frame. `expected`: exact size of its content in bytes, if known.

    Raises PayloadError for anything but a single plain frame, TooLarge above the limits. Memory
    in addition to the result is bounded by the window, 8 MiB.
    """
    # A mutable buffer could change after its header is checked.
    data = frame if memoryview(frame).readonly else bytes(frame)
    try:
        header = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise PayloadError(f"the payload is not a zstd frame ({error})", field="payload") from None
    if header.content_size == _UNKNOWN_SIZE:
        raise PayloadError("the zstd frame does not state its content size", field="content_size")
    if not header.has_checksum:
        raise PayloadError("the zstd frame has no content checksum", field="checksum")
    if header.dict_id:
        raise PayloadError(
            f"the zstd frame needs dictionary {header.dict_id}; none is allowed",
            field="dictionary",
            value=header.dict_id,
            bound=0,
        )
    if expected is not None and header.content_size != expected:
        raise PayloadError(
            f"the zstd frame states {header.content_size} bytes; the header implies {expected}",
            field="content_size",
            value=header.content_size,
            bound=expected,
        )
    limits.check_raw(header.content_size)
    if header.window_size > MAX_WINDOW:
        raise PayloadError(
            f"the zstd window is {header.window_size} bytes; at most {MAX_WINDOW} are allowed",
            field="window",
            value=header.window_size,
            bound=MAX_WINDOW,
        )
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        if header.content_size:
            raw = decompressor.decompress(data, allow_extra_data=False)
        else:
            # `decompress` returns here without reading the rest of the frame.
            raw = _expand_empty(decompressor, data)
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadError(f"the zstd frame is damaged ({error})", field="payload") from None
    if len(raw) != header.content_size:
        raise PayloadError(
            f"the zstd frame has {len(raw)} bytes, but states {header.content_size}",
            field="content_size",
            value=len(raw),
            bound=header.content_size,
        )
    return raw


def _expand_empty(decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview) -> bytes:
    """Read a frame of stated size 0 to its end; return early if it has content."""
    reader = decompressor.decompressobj()
    # Small inputs, because one call returns everything that its input expands to.
    for at in range(0, len(data), 64):
        raw = reader.decompress(data[at : at + 64])
        if raw:
            return raw
        if reader.eof:
            if reader.unused_data or at + 64 < len(data):
                raise zstandard.ZstdError("bytes follow the frame")
            return b""
    raise zstandard.ZstdError("the frame is truncated")


def content_size(frame: bytes | memoryview) -> int:
    """Return the content size that a frame states, in bytes. Raises PayloadError without one."""
    try:
        size = zstandard.get_frame_parameters(bytes(frame[:64])).content_size
    except zstandard.ZstdError as error:
        raise PayloadError(f"the payload is not a zstd frame ({error})", field="payload") from None
    if size == _UNKNOWN_SIZE:
        raise PayloadError("the zstd frame does not state its content size", field="content_size")
    return size
