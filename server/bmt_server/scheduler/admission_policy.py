"""Admission of waiting requests in mode `scatter` when slots are scarce. Pure: no vLLM, no clock.

A running request holds a slot (one of `max_num_seqs`) and KV blocks, also while other masks have
their turn. Requests of the mask in turn are admitted at once, so without a rule a busy mask would
take every slot that becomes free during its turns, and other masks would starve.

Rule: once a request has waited for a slot longer than the bound, free slots are reserved for the
mask whose request has waited longest, until the requests that waited at that time are admitted, at
most one batch. Then the reservation passes on. A group is admitted together, which keeps steps
large. Later requests overtake a waiting one only to fill the batches of masks with earlier
reservations: fewer than one batch for each other mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaitingGroup:
    """Requests of one mask that wait for a slot: their number, and the arrival of the first."""

    waiting: int
    since: float


class AdmissionPolicy:
    """Shares free slots among masks.

    max_wait_s: bound after which slots are reserved, seconds; batch: most requests that one
    reservation admits; reserved_for: the mask with the reservation, None without one.
    """

    def __init__(self, max_wait_s: float, batch: int) -> None:
        self.max_wait_s = max_wait_s
        self.batch = batch
        self.reserved_for: int | None = None
        self._remaining = 0
        self._blocked = False

    def update(self, now: float, groups: Mapping[int, WaitingGroup]) -> None:
        """Start, keep or end the reservation before a step; `groups` by mask."""
        if self.reserved_for is not None and (
            self._remaining <= 0 or self.reserved_for not in groups
        ):
            self.reserved_for = None
        if self.reserved_for is not None:
            self._remaining = min(self._remaining, groups[self.reserved_for].waiting)
            return
        overdue = [m for m, g in groups.items() if now - g.since >= self.max_wait_s]
        if overdue:
            self.reserved_for = min(overdue, key=lambda m: (groups[m].since, m))
            self._remaining = min(self.batch, groups[self.reserved_for].waiting)
            self._blocked = False

    def available_slots(self, mask: int, free: int) -> int:
        """Number of the `free` slots that requests of `mask` may take now."""
        if self.reserved_for is None or mask == self.reserved_for:
            return free
        # A request that lacks KV blocks, not a slot, needs others to release theirs.
        return 0 if self._blocked else max(0, free - self._remaining)

    def record_admitted(self, mask: int, count: int, possible: int) -> None:
        """Record that a step admitted `count` requests of `mask`, of `possible` by slots."""
        if mask == self.reserved_for:
            self._remaining -= count
            self._blocked = count == 0 and possible > 0
