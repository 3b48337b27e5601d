"""Laid-out mask files, which API processes and workers share through the local disk.

A `.bmt` file is compact and untrusted. A laid-out file is verified, uncompressed and of fixed
layout, so that a worker maps it and reads arrays without parsing. It is private to one server
version, which the magic names: never sent, never stored in the registry.

Layout, little-endian, arrays aligned to 64 bytes::

    magic 8 B | crc32 of everything after this field u32 | index length u32 | index (JSON)
    per tensor:  row_start u32 [d_out + 1] | cols u16 or u32 [zeros]

`row_start` and `cols` are the CSR form of the zeroed positions: row r's columns are
`cols[row_start[r] : row_start[r + 1]]`, ascending. Tensor parallelism splits rows and the kernels
iterate over rows, so a rank takes its slice without touching the rest.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bmt_core import Mask, TensorMask

MAGIC = b"BMTLAY1\n"
SUFFIX = ".lay"
# Name prefix of files that are still being written.
TEMPORARY = ".lay-"
_ALIGN = 64
_PREFIX = len(MAGIC) + 8


class LayoutError(Exception):
    """A laid-out file is missing, truncated or damaged; the message names file and fix."""


class LayoutNotFound(LayoutError):
    """The file does not exist."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One tensor's zeroed positions in CSR form.

    shape: [d_out, d_in]; row_start: u32 [d_out + 1]; cols: u16 or u32 [zeros].
    """

    shape: tuple[int, int]
    row_start: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, tensor: TensorMask) -> Rows:
        """The CSR form of a tensor's flat positions."""
        d_out, d_in = tensor.shape
        rows = tensor.positions // tensor.positions.dtype.type(d_in)
        cols = (tensor.positions - rows * tensor.positions.dtype.type(d_in)).astype(
            np.uint16 if d_in <= 1 << 16 else np.uint32
        )
        row_start = np.zeros(d_out + 1, np.uint32)
        np.cumsum(np.bincount(rows.astype(np.int64), minlength=d_out), out=row_start[1:])
        return cls((d_out, d_in), row_start, cols)

    def positions(self) -> np.ndarray:
        """uint64 [zeros]: flat positions, ascending."""
        d_out, d_in = self.shape
        counts = np.diff(self.row_start.astype(np.int64))
        row = np.repeat(np.arange(d_out, dtype=np.uint64), counts)
        return row * np.uint64(d_in) + self.cols.astype(np.uint64)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start..stop of this tensor, as views: the share of one tensor-parallel rank."""
        lo, hi = int(self.row_start[start]), int(self.row_start[stop])
        return Rows(
            (stop - start, self.shape[1]),
            self.row_start[start : stop + 1] - np.uint32(lo),
            self.cols[lo:hi],
        )


def write_layout(mask: Mask, path: Path) -> int:
    """Write a mask's laid-out file atomically. Returns its size in bytes. Raises OSError."""
    arrays: list[np.ndarray] = []
    index: dict[str, object] = {"digest": mask.digest, "tensors": []}
    offset = 0
    entries: list[dict[str, object]] = []
    for tensor in mask.tensors:
        rows = Rows.of(tensor)
        entry: dict[str, object] = {"name": tensor.name, "shape": list(rows.shape)}
        for key, array in (("row_start", rows.row_start), ("cols", rows.cols)):
            entry[key] = [offset, int(array.size), array.dtype.str]
            arrays.append(array)
            offset += -(-array.nbytes // _ALIGN) * _ALIGN
        entries.append(entry)
    index["tensors"] = entries
    text = json.dumps(index).encode()
    text += b" " * (-(_PREFIX + len(text)) % _ALIGN)
    body = bytearray(len(text) + offset)
    body[: len(text)] = text
    at = len(text)
    for array in arrays:
        body[at : at + array.nbytes] = array.tobytes()
        at += -(-array.nbytes // _ALIGN) * _ALIGN
    length = len(text).to_bytes(4, "little")
    crc = zlib.crc32(body, zlib.crc32(length))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + crc.to_bytes(4, "little") + length)
            file.write(body)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return _PREFIX + len(body)


class Layout:
    """Mapped laid-out file: the mask digest, and each tensor's rows as views of the mapping."""

    __slots__ = ("_mapping", "_tensors", "digest")

    def __init__(
        self, digest: str, tensors: Mapping[str, Rows], mapping: mmap.mmap | None = None
    ) -> None:
        """mapping: file that `tensors` are views of, if they can be read from it again."""
        self.digest = digest
        self._tensors: Mapping[str, Rows] | None = tensors
        self._mapping = mapping

    @property
    def tensors(self) -> Mapping[str, Rows]:
        if self._tensors is None:
            assert self._mapping is not None
            self._tensors = _views(memoryview(self._mapping))[1]
        return self._tensors

    def release_pages(self) -> None:
        """Release the views and their pages until the next use of `tensors`.

        The pages leave this process's memory; the kernel caches them while it has room. The file
        may be deleted meanwhile, because the mapping stays.
        """
        if self._mapping is not None:
            self._tensors = None
            self._mapping.madvise(mmap.MADV_DONTNEED)


def map_layout(path: str | Path) -> Layout:
    """Map a laid-out file and verify its checksum. Raises LayoutError.

    The checksum costs about as much as reading the file (4 GB/s), so every mapping verifies it.
    """
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise LayoutNotFound(f"there is no laid-out mask {path}; upload the mask again") from None
    except (OSError, ValueError) as error:
        raise LayoutError(
            f"laid-out mask {path} cannot be mapped ({error}); upload the mask again"
        ) from None
    view = memoryview(mapping)
    if len(view) < _PREFIX or bytes(view[: len(MAGIC)]) != MAGIC:
        raise LayoutError(f"{path} is not a laid-out mask of this version; delete it")
    if zlib.crc32(view[len(MAGIC) + 4 :]) != int.from_bytes(view[8:12], "little"):
        raise LayoutError(f"laid-out mask {path} is damaged (checksum); delete it")
    return Layout(*_views(view), mapping)


def _views(view: memoryview) -> tuple[str, dict[str, Rows]]:
    """Mask digest and tensors of a laid-out file whose checksum was verified."""
    length = int.from_bytes(view[12:16], "little")
    index = json.loads(bytes(view[_PREFIX : _PREFIX + length]))
    base = _PREFIX + length

    def array(entry: list[Any]) -> np.ndarray:
        offset, count, dtype = entry
        return np.frombuffer(view, np.dtype(dtype), count, base + offset)

    return index["digest"], {
        e["name"]: Rows((e["shape"][0], e["shape"][1]), array(e["row_start"]), array(e["cols"]))
        for e in index["tensors"]
    }
