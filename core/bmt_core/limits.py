"""Limits of a reader, checked before it allocates memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bmt_core.errors import BaseMismatch, TooLarge, TooManyZeros
from bmt_core.mask import MAX_METADATA, MAX_MODEL_ID, MAX_TENSOR_NAME, MAX_TENSORS

# Fixed header, and the fields of a tensor's table entry without its name (see header.py).
_FIXED_BYTES = 112
_ENTRY_BYTES = 26
# zstd adds at most this share to data that it cannot compress, such as the gaps of random
# positions. The slack covers a frame's header and checksum.
_ZSTD_WORST = 1 + 1 / 256
_ZSTD_SLACK = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a reader. Sizes are bytes.

    max_file_bytes bounds the file, and max_raw_bytes the decompressed size of any one frame.
    max_sparsity bounds the sparsity: the share of the named tensors' weights that the mask sets to
    zero. shapes, if given, are the only tensors that a mask may name, with their shapes.
    """

    max_file_bytes: int = 1 << 30
    max_raw_bytes: int = 1 << 28
    max_sparsity: float = 1.0
    shapes: Mapping[str, tuple[int, int]] | None = None

    @classmethod
    def for_geometry(
        cls, geometry: Mapping[str, tuple[int, int]], max_sparsity: float = 0.05
    ) -> Limits:
        """Limits for one base: the size of its largest allowed mask under either codec."""
        sizes = [math.prod(shape) for shape in geometry.values()]
        total = sum(sizes)
        gaps = 2 * (math.ceil(max_sparsity * total) + total // 65535 + len(sizes))
        packbits = max((-(-n // 8) for n in sizes), default=0)
        # packbits at the allowed sparsity can approach its raw size, one bit per weight.
        payload = max(gaps, sum(-(-n // 8) for n in sizes)) * _ZSTD_WORST
        header = (
            _FIXED_BYTES
            + MAX_MODEL_ID
            + MAX_METADATA
            + sum(_ENTRY_BYTES + len(name) for name in geometry)
        )
        return cls(
            max_file_bytes=int(payload) + header + _ZSTD_SLACK * (len(sizes) + 1),
            max_raw_bytes=max(gaps, packbits, 1),
            max_sparsity=max_sparsity,
            shapes=dict(geometry),
        )

    def check_file(self, size: int) -> None:
        """Raise TooLarge if a file of `size` bytes exceeds the limit."""
        if size > self.max_file_bytes:
            raise TooLarge(
                f"the file is {size} bytes; the limit is {self.max_file_bytes}. Use a mask with "
                "fewer zeros, or the codec 'gaps'",
                field="file",
                value=size,
                bound=self.max_file_bytes,
            )

    def check_raw(self, size: int) -> None:
        """Raise TooLarge if a frame of `size` decompressed bytes exceeds the limit."""
        if size > self.max_raw_bytes:
            raise TooLarge(
                f"a payload expands to {size} bytes; the limit is {self.max_raw_bytes}",
                field="payload",
                value=size,
                bound=self.max_raw_bytes,
            )

    def check_tensor(self, name: str, shape: tuple[int, int]) -> None:
        """Raise BaseMismatch if the base has no tensor of that name and shape."""
        if self.shapes is None:
            return
        expected = self.shapes.get(name)
        if expected is None:
            raise BaseMismatch(
                f"the base has no maskable tensor {name!r}; the mask was made for another model",
                field="name",
                value=name,
            )
        if tuple(expected) != shape:
            raise BaseMismatch(
                f"{name} is {list(shape)} in the mask and {list(expected)} in the base; the mask "
                "was made for another model",
                field="shape",
                value=shape,
                bound=tuple(expected),
            )

    def check_sparsity(self, zeros: int, numel: int) -> None:
        """Raise TooManyZeros if the sparsity `zeros / numel` exceeds the bound."""
        if numel and zeros > self.max_sparsity * numel:
            raise TooManyZeros(
                f"the mask sets {zeros} of {numel} weights to zero ({zeros / numel:.2%}); at most "
                f"{self.max_sparsity:.2%} are allowed",
                field="sparsity",
                value=zeros / numel,
                bound=self.max_sparsity,
            )


# Header of a file with the most tensors and the longest names: bound of its length field.
MAX_HEADER_BYTES = MAX_MODEL_ID + MAX_METADATA + MAX_TENSORS * (_ENTRY_BYTES + MAX_TENSOR_NAME)
