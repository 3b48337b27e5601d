"""Masks in GPU memory: one block reserved at start, and what goes into it.

The block is taken while the model is loaded. vLLM counts what `load_lora_model` allocates as
weights (0.32.0: `DeviceMemoryProfiler` around it in both `v1/worker/gpu_model_runner.py` and
`v1/worker/gpu/model_runner.py`, `load_model`), and `v1/worker/gpu_worker.py`,
`determine_available_memory`, sizes the KV cache from what is left.

Order. A place may be given to another mask while a step that reads the old one still runs: all
that touches the block (copies into it, kernels that read or write it) is enqueued in program
order by the worker's one thread, and `Arena.order` makes a change of stream wait for what was
enqueued on the stream before. So a copy into a freed place runs after every kernel that read what
was there, and before every kernel that reads what it brings; no step waits on the host for it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

from bmt_server.worker.first_fit import FirstFit
from bmt_server.worker.kernels.triton.mask import ENTRY_WORDS
from bmt_server.worker.resident_mask import (
    LayerMask,
    MaskStoreError,
    NoRoomError,
    ResidentMask,
    moved,
)


@dataclass(slots=True, weakref_slot=True, eq=False)
class PlacedMask(ResidentMask):
    """A mask whose buffer is GPU memory. address: of its directory, see `triton_mask.py`.

    Its place is free again when the last reference to it is gone.
    """

    address: int

    @property
    def nbytes(self) -> int:
        return _directory_bytes(self) + self.buffer.nbytes


class Arena:
    """`capacity` bytes on `device` for masks, and beyond them whatever torch still has."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.device = device
        try:
            self._block = torch.empty(capacity, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            raise MaskStoreError(
                f"{capacity >> 20} MiB for masks do not fit on {device} beside the model; lower "
                "--mask-memory"
            ) from None
        self._places = FirstFit(capacity)
        self._stream: torch.cuda.Stream | None = None

    @property
    def used(self) -> int:
        """Bytes of the block that hold masks."""
        return self._places.used

    def order(self) -> None:
        """Call before enqueueing anything that reads or writes masks; never waits on the host."""
        if self.device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def place(self, mask: ResidentMask, *, beyond: bool) -> PlacedMask:
        """Copy a mask from the host, without its values. Raises NoRoomError where it does not fit.

        beyond: take memory outside the block then, and raise MaskStoreError if there is none.
        """
        head = _directory_bytes(mask)
        size = head + mask.buffer.nbytes
        offset = self._places.allocate(size)
        if offset is not None:
            memory = self._block[offset : offset + size]
        elif beyond:
            memory = self._outside(mask, size)
        else:
            raise NoRoomError(
                f"mask {mask.digest[:12]} takes {size} bytes and no stretch that long is free of "
                f"{self._places.capacity}"
            )
        self.order()
        memory[head:].copy_(mask.buffer, non_blocking=True)
        placed = moved(mask, memory[head:])
        directory = np.array([_entry(layer) for layer in placed.layers], np.int64)
        memory[:head].view(torch.int64).copy_(
            on_host(directory.ravel(), self.device), non_blocking=True
        )
        result = PlacedMask(placed.digest, placed.layers, placed.buffer, memory.data_ptr())
        if offset is not None:
            weakref.finalize(result, self._places.free, offset)
        return result

    def _outside(self, mask: ResidentMask, size: int) -> torch.Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            raise MaskStoreError(
                f"mask {mask.digest[:12]} takes {size} bytes; the masks of running requests fill "
                f"the {self._places.capacity} reserved and the GPU has no more. Raise "
                "--mask-memory, or lower --max-num-seqs or --gpu-memory-utilization"
            ) from None


def _directory_bytes(mask: ResidentMask) -> int:
    return len(mask.layers) * ENTRY_WORDS * 8


def _entry(layer: LayerMask) -> list[int]:
    """One layer's words of the directory, in the order of `triton_mask.py`."""
    arrays = (layer.block_start, layer.row_end, layer.cols, layer.values)
    wide = int(layer.row_end.dtype != torch.uint16)
    return [*(array.data_ptr() for array in arrays), wide, 0, 0, 0]


def on_host(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host tensor that `copy_(non_blocking=True)` to `device` may read after this returns.

    Page-locked for a GPU: torch's host allocator keeps such memory until the copies from it ran,
    and a copy from any other memory would make the host wait for the GPU.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
