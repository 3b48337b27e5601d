"""How much a reader lets a file cost it, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bmt_core.errors import BaseMismatch, TooLarge, TooManyZeros
from bmt_core.mask import MAX_METADATA, MAX_MODEL_ID, MAX_TENSOR_NAME, MAX_TENSORS

# Of the fixed header and each tensor's fields beside its name (see header.py).
_FIXED_BYTES = 112
_ENTRY_BYTES = 26
# Deflation never helps random gaps much, and zstd adds at most this share to data it cannot
# compress; a frame's own header and checksum are in the slack.
_ZSTD_WORST = 1 + 1 / 256
_ZSTD_SLACK = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a reader. Sizes are bytes.

    max_file_bytes bounds the file; max_raw_bytes what any one payload may expand to;
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
        """Bounds that fit one base: what its largest allowed mask needs in the costlier codec."""
        sizes = [math.prod(shape) for shape in geometry.values()]
        total = sum(sizes)
        gaps = 2 * (math.ceil(max_sparsity * total) + total // 65535 + len(sizes))
        packbits = max((-(-n // 8) for n in sizes), default=0)
        # packbits at the allowed sparsity can come close to its raw size, one bit a weight.
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
        """Raise TooLarge where a file of `size` bytes is not to be read."""
        if size > self.max_file_bytes:
            raise TooLarge(
                f"the file is {size} bytes; this base allows {self.max_file_bytes}. A mask of "
                "fewer zeros, or the codec 'gaps', is smaller",
                field="file",
                value=size,
                bound=self.max_file_bytes,
            )

    def check_raw(self, size: int) -> None:
        """Raise TooLarge where a payload of `size` bytes is not to be expanded."""
        if size > self.max_raw_bytes:
            raise TooLarge(
                f"a payload expands to {size} bytes; {self.max_raw_bytes} are allowed",
                field="payload",
                value=size,
                bound=self.max_raw_bytes,
            )

    def check_tensor(self, name: str, shape: tuple[int, int]) -> None:
        """Raise BaseMismatch where the base has no such tensor of that shape."""
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
                f"the mask deletes {zeros} of {numel} weights ({zeros / numel:.2%}); at most "
                f"{self.max_sparsity:.2%} are allowed",
                field="sparsity",
                value=zeros / numel,
                bound=self.max_sparsity,
            )


# The header of a file that names the most and longest tensors, as a bound for its length field.
MAX_HEADER_BYTES = MAX_MODEL_ID + MAX_METADATA + MAX_TENSORS * (_ENTRY_BYTES + MAX_TENSOR_NAME)
