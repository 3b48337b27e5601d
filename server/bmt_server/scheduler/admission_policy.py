"""Which mask's waiting requests may join in `scatter` mode when seats run out.

A request that runs holds a seat (`max_num_seqs`) and KV blocks, also while other masks have their
turn. Requests of the mask in turn join at once, so without a rule a busy mask would take every
seat that falls free, in its own turns, and others would never get one.

The rule: once a request has waited for a seat longer than the bound, the right to free seats goes
to the mask whose request waited longest, until what waited with it has joined, one batch at most.
Then it goes to the next. So a group joins together, which keeps steps large, and a request is
overtaken by later ones only as far as they fill up the batch of an earlier one: by less than a
batch for each other mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests of one mask that wait for a seat: how many, and since when the first."""

    waiting: int
    since: float


class Seats:
    """Shares free seats among masks."""

    def __init__(self, max_wait_s: float, batch: int) -> None:
        self.max_wait_s = max_wait_s
        self.batch = batch
        self.right: int | None = None
        self._left = 0
        self._blocked = False

    def update(self, now: float, queues: Mapping[int, Queue]) -> None:
        """Look at the queues before a step; the right may pass on."""
        if self.right is not None and (self._left <= 0 or self.right not in queues):
            self.right = None
        if self.right is not None:
            self._left = min(self._left, queues[self.right].waiting)
            return
        overdue = [m for m, q in queues.items() if now - q.since >= self.max_wait_s]
        if overdue:
            self.right = min(overdue, key=lambda m: (queues[m].since, m))
            self._left = min(self.batch, queues[self.right].waiting)
            self._blocked = False

    def open_to(self, mask: int, free: int) -> int:
        """How many of `free` seats the mask's requests may take now."""
        if self.right is None or mask == self.right:
            return free
        # What lacks blocks, not a seat, is only helped by admitting nothing else.
        return 0 if self._blocked else max(0, free - self._left)

    def joined(self, mask: int, count: int, could: int) -> None:
        """`count` requests of `mask` got a seat in a step that had `could` for them."""
        if mask == self.right:
            self._left -= count
            self._blocked = count == 0 and could > 0
