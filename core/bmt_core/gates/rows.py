"""Names of some rows of a checkpoint's tensor: `model.layers.0.mlp.gate_up_proj.weight[0:8192]`.

A fused or stacked tensor holds a gate projection in some of its rows. A mask names these rows as a
matrix of their own, so its positions count within them; `docs/reference/format.md` specifies the
name. A reader of earlier versions takes the name for a tensor that no base has, and refuses it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

_ROWS = re.compile(r"(.+)\[(0|[1-9][0-9]{0,9}):([1-9][0-9]{0,9})\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `first` to `end` - 1 of a checkpoint's tensor.

    The tensor is read as the matrix of its last dimension: [d_out, d_in], or [experts, d_out, d_in]
    as [experts * d_out, d_in].
    """

    tensor: str
    first: int
    end: int

    @classmethod
    def parse(cls, name: str) -> Rows | None:
        """The rows that a mask's tensor name stands for; None for a whole tensor."""
        match = _ROWS.fullmatch(name)
        return cls(match[1], int(match[2]), int(match[3])) if match else None

    @property
    def count(self) -> int:
        return self.end - self.first

    def __str__(self) -> str:
        return f"{self.tensor}[{self.first}:{self.end}]"


def overlap(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of these names that name the same row of one tensor, if there are any.

    names: each once. A weight has one place in a mask, or equal masks would differ in their digest.
    """
    names = tuple(names)
    by_tensor: dict[str, list[Rows]] = defaultdict(list)
    for name in names:
        # Nearly all names have no rows, and a table may have thousands.
        if name.endswith("]") and (rows := Rows.parse(name)) is not None:
            by_tensor[rows.tensor].append(rows)
    if not by_tensor:
        return None
    whole = by_tensor.keys() & set(names)
    for tensor in sorted(whole):
        return tensor, str(by_tensor[tensor][0])
    for parts in by_tensor.values():
        for a, b in pairwise(sorted(parts, key=lambda r: (r.first, r.end))):
            if b.first < a.end:
                return str(a), str(b)
    return None
