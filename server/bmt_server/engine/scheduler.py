"""`scatter` mode's scheduler: each step belongs to one mask, masks take turns.

Weights hold one mask at a time in this mode, so a step must not mix. Stock scheduling is reused
whole: requests of other masks are hidden from it for one call and put back. A turn lasts
`scatter_quantum_s` of engine time, or until its mask has nothing to run; then the mask whose
requests waited longest is next, so no mask waits longer than the others' turns together.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from bmt_server.settings import Settings


def mask_of(request: Request) -> int:
    """The adapter id of a request; 0 is the base model, which takes turns like a mask."""
    return request.lora_request.lora_int_id if request.lora_request else 0


class ExclusiveScheduler(Scheduler):
    """vLLM's scheduler (`v1/core/sched/scheduler.py`), one mask a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: list[Request]
        self.max_num_active_reqs: int
        settings = Settings.from_env()
        self._quantum_s = settings.scatter_quantum_s if settings else 0.05
        self._turn: int | None = None
        self._turn_ends = 0.0
        # When each mask last had a step; a mask not in here has waited longest.
        self._served: dict[int, float] = {}

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of one mask. Same result type as vLLM's."""
        candidates = self._order()
        output = None
        for mask in candidates or [0]:
            output = self._schedule_only(mask, *args, **kwargs)
            if output.total_num_scheduled_tokens or len(candidates) <= 1:
                self._begin_turn(mask)
                break
            # Nothing of this mask can run now (for want of KV blocks, say): the next may.
        return output

    def _order(self) -> list[int]:
        """Masks with requests, the one to serve first."""
        waiting = {mask_of(r) for q in (self.running, *self._queues()) for r in q}
        self._served = {m: t for m, t in self._served.items() if m in waiting}
        ranked = sorted(waiting, key=lambda m: self._served.get(m, 0.0))
        turn = self._turn
        if turn in waiting and time.monotonic() < self._turn_ends:
            assert turn is not None
            ranked.remove(turn)
            ranked.insert(0, turn)
        return ranked

    def _begin_turn(self, mask: int) -> None:
        now = time.monotonic()
        if mask != self._turn or now >= self._turn_ends:
            self._turn, self._turn_ends = mask, now + self._quantum_s
        self._served[mask] = now

    def _queues(self) -> list[Any]:
        return [self.waiting, self.kv_holding_waiting]

    def _schedule_only(self, mask: int, *args: Any, **kwargs: Any) -> Any:
        hidden_running = [r for r in self.running if mask_of(r) != mask]
        hidden_waiting = [[r for r in q if mask_of(r) != mask] for q in self._queues()]
        self.running = [r for r in self.running if mask_of(r) == mask]
        for queue, hidden in zip(self._queues(), hidden_waiting, strict=True):
            queue.remove_requests(hidden)
        # Hidden requests keep their seats: the limit is on all that run, not on those in view.
        seats = self.max_num_active_reqs
        self.max_num_active_reqs = max(0, seats - len(hidden_running))
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.max_num_active_reqs = seats
            self.running = hidden_running + self.running
            for queue, hidden in zip(self._queues(), hidden_waiting, strict=True):
                for request in hidden:
                    queue.add_request(request)
