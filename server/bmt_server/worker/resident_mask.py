"""Memory layout of one mask in a worker, and its construction from a laid-out file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from bmt_server.ipc.mask_layout import Layout, Rows
from bmt_server.worker.gate_layers import GateLayer

# Rows of one block: enough to make the block starts cheap, few enough to index the zeros of a block
# with 16 bits on every model.
BLOCK_ROWS = 64
_ALIGN = 64


class MaskStoreError(Exception):
    """A mask cannot be made resident; the message names the mask, the tensor and the reason."""


class NoRoomError(Exception):
    """A kernel's memory is full; the message names the mask and the sizes. Evict one and retry."""


@dataclass(slots=True)
class LayerMask:
    """One mask in one layer, this worker's rows, in blocks of 64 rows (views of its buffer).

    block_start: int32 [ceil(R / 64) + 1], index of each block's first zero; the last entry is n.
    row_end: uint16 [R], end of each row's zeros, relative to its block's start; int32 if a block
        holds more than 65,535 zeros. A row's zeros begin at the end of the row before it.
    cols: uint16 [n], ascending within a row; int32 if K > 65,536.
    values: base dtype [n], the weights at the zeros, stored next to the columns because a read of
        each from the weight matrix would cost one cache line per zero and step.

    In bf16 that is 4 bytes per zero and 2 bytes per row.
    """

    block_start: torch.Tensor
    row_end: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor

    def rows(self) -> torch.Tensor:
        """int64 [n]: the row of each zero, ascending."""
        row = torch.arange(self.row_end.numel(), device=self.row_end.device)
        end = self.block_start[row // BLOCK_ROWS].long() + self.row_end.long()
        return torch.repeat_interleave(row, end.diff(prepend=end.new_zeros(1)))


class LayerViews(Sequence[LayerMask]):
    """A mask's layers as views of its buffer, created on access.

    Four stored tensors per layer would add a tenth to the memory of a small model's mask.
    """

    __slots__ = ("_buffer", "_sizes", "_starts", "_values", "_wide")

    def __init__(
        self,
        buffer: torch.Tensor,
        starts: np.ndarray,
        sizes: np.ndarray,
        wide: np.ndarray,
        values: torch.dtype,
    ) -> None:
        """starts and sizes: int64 [layers, 4], bytes, in LayerMask's order; wide: bool [layers, 2],
        True if row_end or cols is int32; values: dtype of the base weights."""
        self._buffer, self._values = buffer, values
        self._starts, self._sizes, self._wide = starts, sizes, wide

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> LayerMask: ...
    @overload
    def __getitem__(self, index: slice) -> list[LayerMask]: ...

    def __getitem__(self, index: int | slice) -> LayerMask | list[LayerMask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ends = torch.int32 if self._wide[index, 0] else torch.uint16
        cols = torch.int32 if self._wide[index, 1] else torch.uint16
        starts, sizes = self._starts[index].tolist(), self._sizes[index].tolist()
        dtypes = (torch.int32, ends, cols, self._values)
        return LayerMask(
            *(
                self._buffer[start : start + size].view(dtype)
                for start, size, dtype in zip(starts, sizes, dtypes, strict=True)
            )
        )

    @property
    def zeros(self) -> int:
        """Zeros of all layers."""
        itemsize: int = self._values.itemsize
        return int(self._sizes[:, 3].sum()) // itemsize

    def with_buffer(self, buffer: torch.Tensor) -> LayerViews:
        """The same layers as views of another buffer, uint8, that holds a copy of this one's."""
        return LayerViews(buffer, self._starts, self._sizes, self._wide, self._values)


@dataclass(slots=True, eq=False, weakref_slot=True)
class ResidentMask:
    """One mask in this worker's memory: one LayerMask per GateLayer, in the worker's order.

    buffer: uint8, holds all arrays of all layers, each aligned to 64 bytes.
    """

    digest: str
    layers: LayerViews
    buffer: torch.Tensor

    @property
    def nbytes(self) -> int:
        size: int = self.buffer.nbytes
        return size

    def with_buffer(self, buffer: torch.Tensor) -> ResidentMask:
        """The mask as views of `buffer`, uint8, which holds a copy of this mask's buffer."""
        return ResidentMask(self.digest, self.layers.with_buffer(buffer), buffer)


def load_mask(
    layout: Layout,
    gates: Sequence[GateLayer],
    to_device: Callable[[ResidentMask], ResidentMask],
) -> ResidentMask:
    """Pack a mask on the host and pass it to `to_device` (see `Kernel`), which fills its values.

    Raises MaskStoreError, see `pack_mask`, and what `to_device` raises.
    """
    return to_device(pack_mask(layout, gates))


def pack_mask(
    layout: Layout,
    gates: Sequence[GateLayer],
    all_gates: Mapping[str, tuple[int, int]] | None = None,
) -> ResidentMask:
    """Pack a mask's positions into one host buffer as kernels read them; values are not set.

    all_gates: shapes of the gates of the whole model, of which a pipeline stage holds some; None if
    `gates` are all. Tensors that the mask does not name have no zeros. Reads no weight, so any
    thread may call it while steps run. Raises MaskStoreError if names or shapes differ: the
    registry checks them at upload, so here it means another base model.
    """
    _check_tensors(layout, gates, all_gates or {})
    arrays = [_blocked_arrays(part) for part in _gate_rows(layout, gates)]
    values = gates[0].base.dtype
    sizes = np.array(
        [[*(a.nbytes for a in three), values.itemsize * three[2].size] for three in arrays],
        np.int64,
    )
    padded = -(-sizes // _ALIGN) * _ALIGN
    starts = (np.cumsum(padded) - padded.ravel()).reshape(padded.shape)
    # Page-locked for a GPU, so that the copy is asynchronous.
    on_gpu = gates[0].device.type == "cuda"
    host = torch.empty(int(padded.sum()), dtype=torch.uint8, pin_memory=on_gpu)
    raw = host.numpy()
    for index, three in enumerate(arrays):
        for start, array in zip(starts[index].tolist(), three, strict=False):
            raw[start : start + array.nbytes] = array.view(np.uint8)
    wide = np.array([[a.dtype.itemsize > 2 for a in three[1:]] for three in arrays], np.bool_)
    return ResidentMask(layout.digest, LayerViews(host, starts, sizes, wide, values), host)


def _check_tensors(
    layout: Layout, gates: Sequence[GateLayer], all_gates: Mapping[str, tuple[int, int]]
) -> None:
    """Compare a mask's tensors with the model's, also with those of other pipeline stages."""
    short, here = layout.digest[:12], {gate.name for gate in gates}
    known = here | all_gates.keys()
    for name, rows in layout.tensors.items():
        if name not in known:
            raise MaskStoreError(
                f"mask {short} names {name!r}, which is not among this model's {len(known)} gate "
                "tensors; it was made for another base model"
            )
        if name not in here and tuple(rows.shape) != tuple(all_gates[name]):
            raise MaskStoreError(
                f"mask {short}: {name} is {list(rows.shape)} in the mask and "
                f"{list(all_gates[name])} in this model; it was made for another base model"
            )


def _gate_rows(layout: Layout, gates: Sequence[GateLayer]) -> list[Rows]:
    """This worker's rows of every gate, checked against the gates' shapes."""
    short = layout.digest[:12]
    parts = []
    for gate in gates:
        (lo, hi), (r, k) = gate.rows, gate.shape
        rows = layout.tensors.get(gate.name)
        if rows is None:
            parts.append(Rows((r, k), np.zeros(r + 1, np.uint32), np.zeros(0, np.uint16)))
            continue
        if rows.shape[0] < hi or rows.shape[1] != k:
            raise MaskStoreError(
                f"mask {short}: {gate.name} is {list(rows.shape)} in the mask, and this worker "
                f"holds rows {lo}..{hi} of {k} columns; it was made for another base model"
            )
        parts.append(rows.slice(lo, hi))
    return parts


def _blocked_arrays(part: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """block_start, row_end and cols of one layer, from its CSR rows."""
    r = part.shape[0]
    start = part.row_start.astype(np.int32)
    block_start = np.append(start[:r:BLOCK_ROWS], start[-1:])
    row_end = start[1:] - np.repeat(block_start[:-1], BLOCK_ROWS)[:r]
    if not r or row_end.max() < 1 << 16:
        row_end = row_end.astype(np.uint16)
    cols = part.cols if part.cols.dtype == np.uint16 else part.cols.astype(np.int32)
    return block_start, row_end, np.ascontiguousarray(cols)
