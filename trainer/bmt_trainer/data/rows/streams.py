"""Bytes and lines of text files, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import zstandard

from bmt_trainer.errors import DataError

_CHUNK = 1 << 16
# Windows of zstd --ultra and --long=31.
_LARGEST_WINDOW = 1 << 31
# Longer marks first: that of UTF-16 is the beginning of that of UTF-32.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz"}


class _Chunks(io.RawIOBase):
    """A readable file of an iterator of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._ready = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Chunks(_zstd_chunks(raw)))


def _zstd_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """Decompressed data of all frames. zstandard's own file takes a cut-off frame for the end."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    frame, left, inside = decompressor.decompressobj(), b"", False
    while data := left or raw.read(_CHUNK):
        yield frame.decompress(data)
        left, inside = b"", not frame.eof
        if frame.eof:
            left, frame = frame.unused_data, decompressor.decompressobj()
    if inside:
        raise EOFError("the compressed data ends before its end mark")


#: Readers of compressed bytes, by extension.
COMPRESSIONS: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),  # type: ignore[dict-item,return-value]
    ".zst": _zstd,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def text_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 text with their numbers, split at `\\n` only and with their ends.

    A byte order mark is left out. Raises DataError for another encoding.
    """
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = _checked(line, name)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start}); convert the file, for example by iconv -f LATIN1 -t UTF-8"
            ) from None
        yield number, text


def _checked(line: bytes, name: str) -> bytes:
    """The first line without its byte order mark."""
    for mark, encoding in _MARKS.items():
        if line.startswith(mark):
            raise DataError(f"{name}: {_convert(encoding)}")
    for magic, extension in _MAGIC.items():
        if line.startswith(magic):
            raise DataError(f"{name}: compressed, without {extension} in its name; add it")
    if b"\0" in line[:4]:
        raise DataError(f"{name}: {_convert('UTF-16')}")
    return line.removeprefix(_UTF8_MARK)


def _convert(encoding: str) -> str:
    return f"not UTF-8 but {encoding}; convert it: iconv -f {encoding} -t UTF-8"
