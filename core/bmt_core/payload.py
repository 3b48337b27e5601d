"""The one safe way in which a zstd frame of a `.bmt` file is written and read.

Limits that decompressors offer do not hold on their own: python-zstandard's `max_output_size` is
ignored when the frame states a content size, and its streaming forms return partial data of a cut
frame without an error. So the frame's own header is checked first, and then one call expands it.
"""

from __future__ import annotations

import zstandard

from bmt_core.errors import PayloadError
from bmt_core.limits import Limits

MAX_WINDOW = 1 << 23
_UNKNOWN_SIZE = (1 << 64) - 1


def compress(raw: bytes, level: int) -> bytes:
    """One frame with content size and checksum, no dictionary. Deterministic for one libzstd."""
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
    """The frame's content. `expected`: its exact size in bytes, where the caller knows it.

    Raises PayloadError for anything but a single plain frame, TooLarge beyond the limits. Memory
    beyond the result is bounded by the window, 8 MiB.
    """
    # A buffer that can change could change after its header is checked.
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
            f"the zstd frame holds {header.content_size} bytes; the header implies {expected}",
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
            # `decompress` returns at once here, without a look at what follows the frame's header.
            raw = _expand_nothing(decompressor, data)
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadError(f"the zstd frame is damaged ({error})", field="payload") from None
    if len(raw) != header.content_size:
        raise PayloadError(
            f"the zstd frame gave {len(raw)} bytes and states {header.content_size}",
            field="content_size",
            value=len(raw),
            bound=header.content_size,
        )
    return raw


def _expand_nothing(decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview) -> bytes:
    """Read a frame that states an empty content to its end; stop at the first byte it gives."""
    reader = decompressor.decompressobj()
    # Small bites, since one call gives all that its input expands to.
    for at in range(0, len(data), 64):
        raw = reader.decompress(data[at : at + 64])
        if raw:
            return raw
        if reader.eof:
            if reader.unused_data or at + 64 < len(data):
                raise zstandard.ZstdError("bytes follow the frame")
            return b""
    raise zstandard.ZstdError("the frame is cut")


def content_size(frame: bytes | memoryview) -> int:
    """What the frame says it holds, in bytes. Raises PayloadError where it does not say."""
    try:
        size = zstandard.get_frame_parameters(bytes(frame[:64])).content_size
    except zstandard.ZstdError as error:
        raise PayloadError(f"the payload is not a zstd frame ({error})", field="payload") from None
    if size == _UNKNOWN_SIZE:
        raise PayloadError("the zstd frame does not state its content size", field="content_size")
    return size
