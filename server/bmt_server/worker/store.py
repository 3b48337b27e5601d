"""Resident masks of one worker: which are in memory, what they cost, which leaves first.

The bound is on bytes, not on a count: masks differ in size, and memory is what runs out. There
are no slots, so nothing is reserved for a mask that is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from bmt_server.wire import Layout
from bmt_server.worker.layers import GateLayer
from bmt_server.worker.resident import MaskStoreError, NoRoomError, ResidentMask, gather


class MaskStore:
    """Masks by digest, least recently used first out, within a bound of bytes.

    Adapter ids are many to one on digests: two tenants that uploaded equal masks share one
    resident copy. A mapped file stays mapped while any id refers to it, so an evicted mask comes
    back without the file system being able to fail.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        capacity_bytes: int,
        place: Callable[..., ResidentMask],
    ) -> None:
        """place: how a mask gets to its kernel, see `ops.Kernel.place`."""
        self.gates = gates
        self._place = place
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
            stay = {digest, *keep} | self._pinned
            mask = gather(
                digest, self._layouts[digest], self.gates, lambda laid: self._find_room(laid, stay)
            )
            self._resident[digest] = mask
            self.resident_bytes += mask.nbytes
            while self.resident_bytes > self.capacity_bytes and self._evict(stay):
                pass
        else:
            self._resident.move_to_end(digest)
        return mask

    def _find_room(self, mask: ResidentMask, stay: Collection[str]) -> ResidentMask:
        while True:
            try:
                return self._place(mask)
            except NoRoomError:
                if not self._evict(stay):
                    return self._place(mask, beyond=True)

    def _evict(self, stay: Collection[str]) -> bool:
        """Drop the least recently used mask that may leave. False where none may.

        Masks of the running step stay even past the bound: a wrong answer is worse than a short
        overrun, and the next step brings memory back under it.
        """
        victim = next((digest for digest in self._resident if digest not in stay), None)
        if victim is None:
            return False
        self._drop(victim)
        self.evictions += 1
        return True

    def _drop(self, digest: str) -> None:
        mask = self._resident.pop(digest, None)
        if mask is not None:
            self.resident_bytes -= mask.nbytes
