"""Resident masks of one worker: which are in memory, what they cost, which leaves first.

The bound is on bytes, not on a count: masks differ in size, and memory is what runs out. There
are no slots, so nothing is reserved for a mask that is not there.

Two threads come here: the step's, which uses masks, and the loader's, which brings them and takes
them away. Whatever is slow is done outside the lock, so that no step waits for a load. Two things
are the step's alone. Live weights may hold a mask, and only the step knows when they are the
base's, from which values are read. And a GPU's memory is used in the order of the step's stream.
So on a CPU that keeps the base aside the loader does all, and elsewhere it lays a mask out on the
host, and the mask's first step places it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import MaskStoreError, NoRoomError, ResidentMask, arrange


class PinError(MaskStoreError):
    """Pinned masks would take all the memory there is for masks."""


class MaskStore:
    """Masks by digest, least recently used first out, within a bound of bytes.

    Adapter ids are many to one on digests: two tenants that uploaded equal masks share one
    resident copy. A file stays mapped while any id refers to it, so an evicted mask comes back
    without the file system being able to fail.

    Every operation costs the same however many masks there are, but for an eviction, which walks
    past pinned ones.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        capacity_bytes: int,
        place: Callable[..., ResidentMask],
    ) -> None:
        """place: how a mask gets to its kernel, see `ops.Kernel.place`."""
        self.gates = gates
        self.capacity_bytes = capacity_bytes
        self.evictions = 0
        self.resident_bytes = 0
        # Hears of ids whose mask left memory for want of room. Called without the lock.
        self.evicted: Callable[[list[int]], None] = lambda adapters: None
        self._place = place
        self._step_places = any(g.live is not None or g.device.type != "cpu" for g in gates)
        self._lock = threading.Lock()
        self._resident: OrderedDict[str, ResidentMask] = OrderedDict()
        # Of the resident ones, those that are still to be placed.
        self._unplaced: set[str] = set()
        # Masks that left; the step lets go of them where their memory is the step's to reuse.
        self._left: list[ResidentMask] = []
        self._layouts: dict[str, Layout] = {}
        self._digest_of: dict[int, str] = {}
        self._ids_of: dict[str, set[int]] = {}
        self._pinned: dict[str, set[int]] = {}
        self._in_step: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def adapters(self) -> set[int]:
        """All known ids."""
        with self._lock:
            return set(self._digest_of)

    def knows(self, adapter: int) -> bool:
        """True for an id that can be used without opening a file."""
        return adapter in self._digest_of

    def resident(self, adapter: int) -> bool:
        """True where the id's mask is in memory."""
        return self._digest_of.get(adapter, "") in self._resident

    def ready(self, adapters: Iterable[int]) -> bool:
        """True where using these masks reads no base weight."""
        digests = [self._digest_of.get(a, "") for a in adapters]
        return all(d in self._resident and d not in self._unplaced for d in digests)

    def digest(self, adapter: int) -> str:
        """The mask digest of a known id."""
        return self._digest_of[adapter]

    def layout(self, adapter: int) -> Layout | None:
        """The mapped file of a known id."""
        return self._layouts.get(self._digest_of.get(adapter, ""))

    def recent(self, count: int) -> list[int]:
        """Ids of the most recently used masks, one for each, the latest last."""
        with self._lock:
            newest = [d for d, _ in zip(reversed(self._resident), range(count), strict=False)]
            return [min(self._ids_of[d]) for d in reversed(newest)]

    def add(self, adapter: int, layout: Layout) -> None:
        """Make `layout` known as `adapter`, and its mask resident. Any thread.

        Raises MaskStoreError, and the id is as unknown as before then.
        """
        digest = layout.digest
        with self._lock:
            mask = self._resident.get(digest)
        if mask is None:
            mask = self._arrange(digest, layout)
            if not self._step_places:
                mask = self._place(mask)
        with self._lock:
            self._digest_of[adapter] = digest
            self._ids_of.setdefault(digest, set()).add(adapter)
            self._layouts.setdefault(digest, layout)
            if digest not in self._resident and self._step_places:
                self._unplaced.add(digest)
            self._put(mask)
            gone = self._evict(lambda: self.resident_bytes > self.capacity_bytes, digest)
        if gone:
            self.evicted(gone)

    def use(self, adapters: Sequence[int]) -> dict[int, ResidentMask]:
        """The masks of the coming step, none of which leaves before the next call. Step's thread.

        What is not `ready` is read from the base weights now, which must hold the base.
        """
        with self._lock:
            self._left.clear()
            digests = {a: self._digest_of[a] for a in adapters}
            self._in_step = frozenset(digests.values())
            late = {d: self._resident.get(d) for d in self._in_step if not self._placed(d)}
            layouts = {d: self._layouts[d] for d, mask in late.items() if mask is None}
            for digest in self._in_step & self._resident.keys():
                self._resident.move_to_end(digest)
            # What a step before held past the bound.
            gone = self._evict(lambda: self.resident_bytes > self.capacity_bytes, "")
        if gone:
            self.evicted(gone)
        for digest, mask in late.items():
            self._bring(digest, mask or self._arrange(digest, layouts[digest]))
        with self._lock:
            return {a: self._resident[d] for a, d in digests.items()}

    def _bring(self, digest: str, mask: ResidentMask) -> None:
        """Place a mask for the step that begins."""
        gone: list[int] = []
        while True:
            try:
                placed = self._place(mask)
                break
            except NoRoomError:
                with self._lock:
                    left = self._evict(lambda: True, digest, most=1)
                    self._left.clear()
                gone += left
                if not left:
                    placed = self._place(mask, beyond=True)
                    break
        with self._lock:
            self._drop(digest)
            self._put(placed)
            gone += self._evict(lambda: self.resident_bytes > self.capacity_bytes, digest)
        if gone:
            self.evicted(gone)

    def remove(self, adapter: int) -> bool:
        """Forget an id; the mask leaves memory with its last id. False where unknown."""
        with self._lock:
            digest = self._digest_of.pop(adapter, None)
            if digest is None:
                return False
            self._unpin(adapter, digest)
            ids = self._ids_of[digest]
            ids.discard(adapter)
            if not ids:
                del self._ids_of[digest]
                self._layouts.pop(digest, None)
                self._drop(digest)
        return True

    def pin(self, adapter: int, pinned: bool = True) -> bool:
        """Exempt a resident mask from eviction, or end that. False where it is not resident.

        Raises PinError where pinned masks would leave no room for others.
        """
        with self._lock:
            digest = self._digest_of.get(adapter)
            if digest is None:
                return False
            if not pinned:
                self._unpin(adapter, digest)
                return True
            mask = self._resident.get(digest)
            if mask is None:
                return False
            others = sum(self._resident[d].nbytes for d in self._pinned if d != digest)
            if others + mask.nbytes > self.capacity_bytes:
                raise PinError(
                    f"pinned masks take {others} of {self.capacity_bytes} bytes for masks, and "
                    f"this one {mask.nbytes}; unpin some or raise --mask-memory"
                )
            self._pinned.setdefault(digest, set()).add(adapter)
        return True

    def _placed(self, digest: str) -> bool:
        return digest in self._resident and digest not in self._unplaced

    def _arrange(self, digest: str, layout: Layout) -> ResidentMask:
        mask = arrange(digest, layout, self.gates)
        # The file's pages were read once, and would count as this process's memory.
        layout.release_pages()
        return mask

    def _unpin(self, adapter: int, digest: str) -> None:
        by = self._pinned.get(digest)
        if by is not None:
            by.discard(adapter)
            if not by:
                del self._pinned[digest]

    def _put(self, mask: ResidentMask) -> None:
        if mask.digest not in self._resident:
            self._resident[mask.digest] = mask
            self.resident_bytes += mask.nbytes
        self._resident.move_to_end(mask.digest)

    def _evict(self, wanted: Callable[[], bool], stays: str, most: int = 1 << 62) -> list[int]:
        """Drop the least recently used masks while `wanted`; returns the ids of those that left.

        Masks of the running step stay even past the bound: a wrong answer is worse than a short
        overrun, and the next step or load brings memory back under it.
        """
        gone: list[int] = []
        passed = 0
        while passed < len(self._resident) and most and wanted():
            digest = next(iter(self._resident))
            if digest == stays or digest in self._in_step or digest in self._pinned:
                self._resident.move_to_end(digest)
                passed += 1
                continue
            self._drop(digest)
            most -= 1
            self.evictions += 1
            gone += self._ids_of.get(digest, ())
        return gone

    def _drop(self, digest: str) -> None:
        mask = self._resident.pop(digest, None)
        if mask is not None:
            self.resident_bytes -= mask.nbytes
            if self._step_places and digest not in self._unplaced:
                self._left.append(mask)
        self._unplaced.discard(digest)
