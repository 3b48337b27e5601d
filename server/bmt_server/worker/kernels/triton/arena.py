"""Masks in GPU memory: one block, reserved at start.

The block is allocated while the model loads. vLLM 0.32.0 counts the allocations of
`load_lora_model` as weights (`DeviceMemoryProfiler` around it in `load_model` of both
`v1/worker/gpu_model_runner.py` and `v1/worker/gpu/model_runner.py`) and sizes the KV cache from the
remaining memory (`v1/worker/gpu_worker.py`, `determine_available_memory`).

Order of accesses. A range may be given to another mask while a step that reads the old one still
runs. The worker's one thread enqueues all accesses to the block (copies into it, kernels that read
or write it) in program order, and after a change of stream `Arena.order` makes the new stream wait
for the old one. So a copy into a freed range runs after every kernel that read the old mask and
before every kernel that reads the new one, and the host waits for none of them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

from bmt_server.worker.kernels.triton.first_fit import FirstFitAllocator
from bmt_server.worker.kernels.triton.mask import ENTRY_WORDS
from bmt_server.worker.resident_mask import (
    LayerMask,
    MaskStoreError,
    NoRoomError,
    ResidentMask,
)


@dataclass(slots=True, weakref_slot=True, eq=False)
class DeviceMask(ResidentMask):
    """A mask whose buffer is GPU memory. address: of its directory, see `mask.py`.

    Its memory is freed with the last reference to it.
    """

    address: int

    @property
    def nbytes(self) -> int:
        size: int = _directory_bytes(self) + self.buffer.nbytes
        return size


class Arena:
    """A block of `capacity` bytes on `device` for masks; overflow comes from torch's allocator.

    Raises MaskStoreError if the block does not fit on the device.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.device = device
        try:
            self._block = torch.empty(capacity, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            raise MaskStoreError(
                f"{capacity >> 20} MiB for masks do not fit on {device} next to the model; lower "
                "--mask-memory-mib"
            ) from None
        self._allocator = FirstFitAllocator(capacity)
        self._stream: torch.cuda.Stream | None = None

    @property
    def used(self) -> int:
        """Bytes of the block that hold masks."""
        return self._allocator.used

    def order(self) -> None:
        """Order the current stream after all earlier accesses; never blocks the host.

        Call it before each enqueue of work that reads or writes masks.
        """
        if self.device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def copy_in(self, mask: ResidentMask, *, allow_overflow: bool) -> DeviceMask:
        """Copy a mask from the host, without its values. Raises NoRoomError if it does not fit.

        allow_overflow: allocate outside the block instead; raises MaskStoreError if the device has
        no memory left.
        """
        head = _directory_bytes(mask)
        size = head + mask.buffer.nbytes
        offset = self._allocator.allocate(size)
        if offset is not None:
            memory = self._block[offset : offset + size]
        elif allow_overflow:
            memory = self._overflow(mask, size)
        else:
            raise NoRoomError(
                f"mask {mask.digest[:12]} takes {size} bytes, and no free range of the "
                f"{self._allocator.capacity} reserved bytes is that long"
            )
        self.order()
        memory[head:].copy_(mask.buffer, non_blocking=True)
        copy = mask.with_buffer(memory[head:])
        directory = np.array([_entry(layer) for layer in copy.layers], np.int64)
        memory[:head].view(torch.int64).copy_(
            on_host(directory.ravel(), self.device), non_blocking=True
        )
        result = DeviceMask(copy.digest, copy.layers, copy.buffer, memory.data_ptr())
        if offset is not None:
            weakref.finalize(result, self._allocator.free, offset)
        return result

    def _overflow(self, mask: ResidentMask, size: int) -> torch.Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            raise MaskStoreError(
                f"mask {mask.digest[:12]} takes {size} bytes; the masks of running requests fill "
                f"the {self._allocator.capacity} reserved bytes, and the GPU has no memory left. "
                "Raise --mask-memory-mib, or lower --max-num-seqs or --gpu-memory-utilization"
            ) from None


def _directory_bytes(mask: ResidentMask) -> int:
    return len(mask.layers) * ENTRY_WORDS * 8


def _entry(layer: LayerMask) -> list[int]:
    """One layer's entry in the directory, in the order of `mask.py`."""
    arrays = (layer.block_start, layer.row_end, layer.cols, layer.values)
    wide = int(layer.row_end.dtype != torch.uint16)
    return [*(array.data_ptr() for array in arrays), wide, 0, 0, 0]


def on_host(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return a host tensor for an asynchronous copy to `device`.

    Page-locked for a GPU: torch's host allocator keeps such memory until the copies from it are
    done, and a copy from any other memory would make the host wait for the GPU.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
