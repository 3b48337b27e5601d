"""Set operations on the zero positions of masks of one base.

Masks of other bases or shapes are a BaseMismatch; two that name the same rows of a tensor
differently (`gates/rows.py`) are a MaskError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bmt_core.errors import BaseMismatch, MaskError
from bmt_core.gates.rows import overlap
from bmt_core.mask import Mask, TensorMask, position_dtype

_SetOp = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _pairs(a: Mask, b: Mask) -> list[tuple[str, tuple[int, int], np.ndarray, np.ndarray]]:
    if a.base.fingerprint != b.base.fingerprint:
        raise BaseMismatch(
            f"masks of different bases cannot be combined: {a.base.model_id!r} "
            f"({a.base.fingerprint[:12]}…) and {b.base.model_id!r} ({b.base.fingerprint[:12]}…)",
            field="base.fingerprint",
            value=b.base.fingerprint,
            bound=a.base.fingerprint,
        )
    left = {t.name: t for t in a.tensors}
    right = {t.name: t for t in b.tensors}
    if (same := overlap(left | right)) is not None:
        # By their names, equal zeros would count as different ones.
        raise MaskError(
            f"the masks name the same weights differently: {same[0]} and {same[1]} have rows in "
            "common; combine masks of the same targets",
            field="tensors",
            value=same,
        )
    pairs = []
    for name in sorted(left | right):
        x, y = left.get(name), right.get(name)
        present = x or y
        assert present is not None
        if x and y and x.shape != y.shape:
            raise BaseMismatch(
                f"{name} is {x.shape} in one mask and {y.shape} in the other",
                field="shape",
                value=y.shape,
                bound=x.shape,
            )
        empty = np.zeros(0, position_dtype(present.numel))
        pairs.append(
            (name, present.shape, x.positions if x else empty, y.positions if y else empty)
        )
    return pairs


def _combine(a: Mask, b: Mask, op: _SetOp, metadata: Mapping[str, Any] | None) -> Mask:
    tensors = tuple(TensorMask(n, shape, op(x, y)) for n, shape, x, y in _pairs(a, b))
    return Mask(a.base, tensors, metadata or {})


def union(a: Mask, b: Mask, metadata: Mapping[str, Any] | None = None) -> Mask:
    """Mask of the positions that are zero in `a` or `b`. Raises BaseMismatch, MaskError."""
    return _combine(a, b, np.union1d, metadata)


def intersection(a: Mask, b: Mask, metadata: Mapping[str, Any] | None = None) -> Mask:
    """Mask of the positions that are zero in `a` and `b`. Raises BaseMismatch, MaskError."""
    return _combine(a, b, lambda x, y: np.intersect1d(x, y, assume_unique=True), metadata)


def difference(a: Mask, b: Mask, metadata: Mapping[str, Any] | None = None) -> Mask:
    """Mask of the positions that are zero in `a` and not in `b`. Raises BaseMismatch, MaskError."""
    return _combine(a, b, lambda x, y: np.setdiff1d(x, y, assume_unique=True), metadata)


def symmetric_difference(a: Mask, b: Mask, metadata: Mapping[str, Any] | None = None) -> Mask:
    """Mask of the positions that are zero in exactly one of the two.

    Raises BaseMismatch, MaskError.
    """
    return _combine(a, b, lambda x, y: np.setxor1d(x, y, assume_unique=True), metadata)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Counts of positions in A only, in B only, and in both."""

    only_a: int
    only_b: int
    both: int

    @property
    def jaccard(self) -> float:
        """Jaccard index |A ∩ B| / |A ∪ B|; 1 for two empty sets."""
        total = self.only_a + self.only_b + self.both
        return self.both / total if total else 1.0


@dataclass(frozen=True, slots=True)
class MaskDiff:
    """Comparison of two masks: total, and each tensor by name."""

    total: Overlap
    tensors: Mapping[str, Overlap]

    @property
    def jaccard(self) -> float:
        return self.total.jaccard


def compare(a: Mask, b: Mask) -> MaskDiff:
    """Count the zero positions that two masks share and do not share.

    Raises BaseMismatch, MaskError.
    """
    tensors = {}
    for name, _, x, y in _pairs(a, b):
        both = int(np.intersect1d(x, y, assume_unique=True).size)
        tensors[name] = Overlap(int(x.size) - both, int(y.size) - both, both)
    values = tensors.values()
    total = Overlap(
        sum(o.only_a for o in values), sum(o.only_b for o in values), sum(o.both for o in values)
    )
    return MaskDiff(total, tensors)


def jaccard(a: Mask, b: Mask) -> float:
    """Jaccard index |A ∩ B| / |A ∪ B| over all tensors. Raises BaseMismatch, MaskError."""
    return compare(a, b).jaccard
