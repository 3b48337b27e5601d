"""Resident masks of one worker: which are in memory, what they cost, which leaves first.

The bound is on bytes, not on a count: masks differ in size, and memory is what runs out. There
are no slots, so nothing is reserved for a mask that is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmt_server.wire import Layout, Rows
from bmt_server.worker.layers import GateLayer


class MaskStoreError(Exception):
    """A mask cannot be made resident; the message names the mask, the tensor and the reason."""


@dataclass(slots=True)
class LayerMask:
    """One mask in one layer, this worker's rows (views into the mask's two arrays).

    row_start: int32 [R + 1]; cols: uint16 or uint32 [n]; values: base dtype [n], the weights that
    the mask deletes. Values are kept beside the columns because gathering them from the weight at
    every step would cost a cache line each; together they are 4 bytes a zero in bf16.
    """

    row_start: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor

    def rows(self) -> torch.Tensor:
        """int64 [n]: the row of each zero, ascending."""
        counts = self.row_start[1:] - self.row_start[:-1]
        return torch.repeat_interleave(
            torch.arange(counts.numel(), device=counts.device), counts.long()
        )


@dataclass(slots=True)
class ResidentMask:
    """One mask in this worker's memory: one LayerMask per GateLayer, in the worker's order."""

    digest: str
    layers: list[LayerMask]
    nbytes: int


def gather(digest: str, layout: Layout, gates: Sequence[GateLayer]) -> ResidentMask:
    """Read the base values at the mask's positions and lay all out for the kernels.

    A tensor that the mask does not name is left whole. Raises MaskStoreError where shapes differ:
    the registry checks them at upload, so here it means another base model.
    """
    known = {gate.name for gate in gates}
    if not known & layout.tensors.keys() and layout.tensors:
        raise MaskStoreError(
            f"mask {digest[:12]} names none of this model's {len(known)} gate tensors "
            f"(it has {next(iter(layout.tensors))!r}); it was made for another base model"
        )
    layers: list[LayerMask] = []
    for gate in gates:
        (lo, hi), (r, k) = gate.rows, gate.shape
        rows = layout.tensors.get(gate.name)
        if rows is None:
            part = Rows((r, k), np.zeros(r + 1, np.uint32), np.zeros(0, np.uint16))
        else:
            if rows.shape[0] < hi or rows.shape[1] != k:
                raise MaskStoreError(
                    f"mask {digest[:12]}: {gate.name} is {list(rows.shape)} in the mask, and this "
                    f"worker holds rows {lo}..{hi} of {k} columns; it fits another base model"
                )
            part = rows.slice(lo, hi)
        row_start = torch.from_numpy(part.row_start.astype(np.int32)).to(gate.device)
        cols = torch.from_numpy(np.array(part.cols)).to(gate.device)
        layer = LayerMask(row_start, cols, torch.empty(0, dtype=gate.base.dtype))
        layer.values = gate.base[layer.rows(), cols.long()]
        layers.append(layer)
    nbytes = sum(t.nbytes for m in layers for t in (m.row_start, m.cols, m.values))
    return ResidentMask(digest, layers, nbytes)


class MaskStore:
    """Masks by digest, least recently used first out, within a bound of bytes.

    Adapter ids are many to one on digests: two tenants that uploaded equal masks share one
    resident copy. A mapped file stays mapped while any id refers to it, so an evicted mask comes
    back without the file system being able to fail.
    """

    def __init__(self, gates: Sequence[GateLayer], capacity_bytes: int) -> None:
        self.gates = gates
        self.capacity_bytes = capacity_bytes
        self.evictions = 0
        self.resident_bytes = 0
        self._resident: OrderedDict[str, ResidentMask] = OrderedDict()
        self._layouts: dict[str, Layout] = {}
        self._digest_of: dict[int, str] = {}
        self._pinned: set[str] = set()

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def adapters(self) -> set[int]:
        """Ids that can be used without reading a file."""
        return set(self._digest_of)

    def resident(self, adapter: int) -> bool:
        """True where the id's mask is in memory, so that using it reads no weight."""
        return self._digest_of.get(adapter, "") in self._resident

    def add(self, adapter: int, layout: Layout, *, keep: Collection[str] = ()) -> ResidentMask:
        """Make `layout` known as `adapter` and resident; `keep` are digests that may not leave."""
        self._digest_of[adapter] = layout.digest
        self._layouts.setdefault(layout.digest, layout)
        try:
            return self._load(layout.digest, keep)
        except MaskStoreError:
            self.remove(adapter)
            raise

    def get(self, adapter: int, *, keep: Collection[str] = ()) -> ResidentMask:
        """The mask of a known id, gathered again if it was evicted; marks it as just used."""
        return self._load(self._digest_of[adapter], keep)

    def digest(self, adapter: int) -> str:
        return self._digest_of[adapter]

    def remove(self, adapter: int) -> bool:
        """Forget an id; the mask leaves memory with its last id. False where unknown."""
        digest = self._digest_of.pop(adapter, None)
        if digest is None:
            return False
        if digest not in self._digest_of.values():
            self._drop(digest)
            self._layouts.pop(digest, None)
            self._pinned.discard(digest)
        return True

    def pin(self, adapter: int, pinned: bool = True) -> bool:
        """Exempt a mask from eviction, or end that. False where the id is unknown."""
        digest = self._digest_of.get(adapter)
        if digest is None:
            return False
        (self._pinned.add if pinned else self._pinned.discard)(digest)
        return True

    def _load(self, digest: str, keep: Collection[str]) -> ResidentMask:
        mask = self._resident.get(digest)
        if mask is None:
            mask = gather(digest, self._layouts[digest], self.gates)
            self._resident[digest] = mask
            self.resident_bytes += mask.nbytes
            self._evict({digest, *keep} | self._pinned)
        else:
            self._resident.move_to_end(digest)
        return mask

    def _evict(self, keep: set[str]) -> None:
        # Masks of the running step stay even past the bound: a wrong answer is worse than a
        # short overrun, and the next step brings memory back under it.
        for digest in list(self._resident):
            if self.resident_bytes <= self.capacity_bytes:
                return
            if digest not in keep:
                self._drop(digest)
                self.evictions += 1

    def _drop(self, digest: str) -> None:
        mask = self._resident.pop(digest, None)
        if mask is not None:
            self.resident_bytes -= mask.nbytes
