"""Resident masks of one worker: a least-recently-used cache bounded in bytes.

The bound is on bytes, not on a count, because masks differ in size and memory is the scarce
resource. There are no adapter slots: no memory is reserved for masks that are not resident.

Two threads use the store: the step's thread uses masks, the loader's thread adds and removes them.
Slow work runs outside the lock, so no step waits for a load. Two kinds of work belong to the step's
thread alone: reads of base values from live weights, because only the step knows when the weights
hold the base, and writes to GPU memory, because they are ordered by the step's stream. Therefore
the loader's thread does all work on a CPU that keeps a copy of the base; elsewhere it packs a mask
on the host, and the mask's first step copies it to the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import MaskStoreError, NoRoomError, ResidentMask, pack_mask


class PinError(MaskStoreError):
    """Pinned masks would leave no memory for other masks."""


class MaskStore:
    """Masks by digest, least recently used first out, within a bound in bytes.

    Several adapter ids may have one digest: two tenants that uploaded equal masks share one
    resident copy. A file stays mapped while any id refers to it, so an evicted mask returns without
    a file access that could fail.

    The cost of every operation is independent of the number of masks, except an eviction, which
    skips pinned masks one by one.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        capacity_bytes: int,
        to_device: Callable[..., ResidentMask],
        on_evict: Callable[[list[int]], None] | None = None,
        all_gates: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """capacity_bytes: bound on resident masks; to_device: see `kernels.masked_delta.Kernel`;
        on_evict: receives the ids whose mask was evicted, is called without the lock; all_gates:
        see `pack_mask`."""
        self.gates = gates
        self.capacity_bytes = capacity_bytes
        self.evictions = 0
        self.replacements = 0  # of the base weights
        self.resident_bytes = 0
        self._to_device = to_device
        self._all_gates = all_gates
        self._on_evict = on_evict
        self._step_copies = any(g.live is not None or g.device.type != "cpu" for g in gates)
        self._lock = threading.Lock()
        self._resident: OrderedDict[str, ResidentMask] = OrderedDict()
        # Digests of resident masks that are packed on the host only.
        self._on_host: set[str] = set()
        # Masks that left; the step drops these references if their memory is the step's to reuse.
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
        """All known adapter ids."""
        with self._lock:
            return set(self._digest_of)

    def knows(self, adapter: int) -> bool:
        """True if a step can use the id without opening a file."""
        return adapter in self._digest_of

    def resident(self, adapter: int) -> bool:
        """True if the id's mask is in memory."""
        return self._digest_of.get(adapter, "") in self._resident

    def ready(self, adapters: Iterable[int]) -> bool:
        """True if `use` of these ids reads no base weight."""
        digests = [self._digest_of.get(a, "") for a in adapters]
        return all(d in self._resident and d not in self._on_host for d in digests)

    def digest(self, adapter: int) -> str:
        """The mask digest of a known id. Raises KeyError for others."""
        return self._digest_of[adapter]

    def layout(self, adapter: int) -> Layout | None:
        """The mapped file of a known id; None for others."""
        return self._layouts.get(self._digest_of.get(adapter, ""))

    def recent(self, count: int) -> list[int]:
        """One id for each of the `count` most recently used masks, the latest last."""
        with self._lock:
            newest = [d for d, _ in zip(reversed(self._resident), range(count), strict=False)]
            return [min(self._ids_of[d]) for d in reversed(newest)]

    def add(self, adapter: int, layout: Layout) -> None:
        """Register `layout` as `adapter` and make its mask resident. Any thread.

        Raises MaskStoreError and leaves the store unchanged then.
        """
        digest = layout.digest
        with self._lock:
            mask, replacements = self._resident.get(digest), self.replacements
        if mask is None:
            mask = self._pack(layout)
            if not self._step_copies:
                mask = self._to_device(mask)
        with self._lock:
            if replacements != self.replacements:
                raise MaskStoreError(
                    f"mask {digest[:12]}: the base weights were replaced while it was loaded"
                )
            self._digest_of[adapter] = digest
            self._ids_of.setdefault(digest, set()).add(adapter)
            self._layouts.setdefault(digest, layout)
            if digest not in self._resident and self._step_copies:
                self._on_host.add(digest)
            self._insert(mask)
            evicted = self._evict(self._over_capacity, digest)
        self._report(evicted)

    def use(self, adapters: Sequence[int]) -> dict[int, ResidentMask]:
        """Return the masks of the next step; none of them leaves before the next call.

        Step's thread only. Masks that are not `ready` are filled from the base weights now, which
        must hold the base. Raises KeyError for an unknown id, MaskStoreError if the device is full.
        """
        with self._lock:
            self._left.clear()
            digests = {a: self._digest_of[a] for a in adapters}
            self._in_step = frozenset(digests.values())
            late = {d: self._resident.get(d) for d in self._in_step if not self._is_on_device(d)}
            layouts = {d: self._layouts[d] for d, mask in late.items() if mask is None}
            for digest in self._in_step & self._resident.keys():
                self._resident.move_to_end(digest)
            # The previous step's masks may exceed the bound.
            evicted = self._evict(self._over_capacity, "")
        self._report(evicted)
        for digest, mask in late.items():
            self._copy_to_device(digest, mask or self._pack(layouts[digest]))
        with self._lock:
            return {a: self._resident[d] for a, d in digests.items()}

    def _copy_to_device(self, digest: str, mask: ResidentMask) -> None:
        """Copy a mask of the next step to the device; evict others until it fits."""
        evicted: list[int] = []
        while True:
            try:
                copied = self._to_device(mask)
                break
            except NoRoomError:
                with self._lock:
                    ids = self._evict(lambda: True, digest, most=1)
                    self._left.clear()
                evicted += ids
                if not ids:
                    copied = self._to_device(mask, allow_overflow=True)
                    break
        with self._lock:
            self._drop(digest)
            self._insert(copied)
            evicted += self._evict(self._over_capacity, digest)
        self._report(evicted)

    def forget_values(self) -> None:
        """Drop all masks from memory, because the base weights that they read are replaced.

        Ids stay known, and their masks return at the next use. Step's thread only; the kernel must
        be idle.
        """
        with self._lock:
            self.replacements += 1
            dropped = [a for digest in self._resident for a in self._ids_of.get(digest, ())]
            for digest in list(self._resident):
                self._drop(digest)
            self._pinned.clear()
            self._in_step = frozenset()
            self._left.clear()
        self._report(dropped)

    def remove(self, adapter: int) -> bool:
        """Forget an id; its mask leaves memory with the last id. Returns False if it is unknown."""
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
        """Exempt a resident mask from eviction, or end the exemption.

        Returns False if the id is unknown or its mask is not resident. Raises PinError if pinned
        masks would exceed the bound.
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
                    f"this one needs {mask.nbytes}; unpin some or raise --mask-memory-mib"
                )
            self._pinned.setdefault(digest, set()).add(adapter)
        return True

    def _is_on_device(self, digest: str) -> bool:
        return digest in self._resident and digest not in self._on_host

    def _over_capacity(self) -> bool:
        return self.resident_bytes > self.capacity_bytes

    def _report(self, evicted: list[int]) -> None:
        if evicted and self._on_evict is not None:
            self._on_evict(evicted)

    def _pack(self, layout: Layout) -> ResidentMask:
        mask = pack_mask(layout, self.gates, self._all_gates)
        # The file's pages are read by now, and would count as this process's memory.
        layout.release_pages()
        return mask

    def _unpin(self, adapter: int, digest: str) -> None:
        ids = self._pinned.get(digest)
        if ids is not None:
            ids.discard(adapter)
            if not ids:
                del self._pinned[digest]

    def _insert(self, mask: ResidentMask) -> None:
        if mask.digest not in self._resident:
            self._resident[mask.digest] = mask
            self.resident_bytes += mask.nbytes
        self._resident.move_to_end(mask.digest)

    def _evict(self, wanted: Callable[[], bool], keep: str, most: int = 1 << 62) -> list[int]:
        """Drop least recently used masks while `wanted()`, at most `most`; return their ids.

        keep: a digest that stays. Masks of the running step stay even beyond the bound: a wrong
        output is worse than a short overrun, which the next step or load ends.
        """
        evicted: list[int] = []
        skipped = 0
        while skipped < len(self._resident) and most and wanted():
            digest = next(iter(self._resident))
            if digest == keep or digest in self._in_step or digest in self._pinned:
                self._resident.move_to_end(digest)
                skipped += 1
                continue
            self._drop(digest)
            most -= 1
            self.evictions += 1
            evicted += self._ids_of.get(digest, ())
        return evicted

    def _drop(self, digest: str) -> None:
        mask = self._resident.pop(digest, None)
        if mask is not None:
            self.resident_bytes -= mask.nbytes
            if self._step_copies and digest not in self._on_host:
                self._left.append(mask)
        self._on_host.discard(digest)
