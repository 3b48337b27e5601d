"""`scatter` mode's scheduler: each step belongs to one mask, masks take turns.

Weights hold one mask at a time in this mode, so a step must not mix. Stock scheduling is reused
whole: for one call it sees only the requests of one mask. Which mask is the matter of `turns.py`,
who may take a free seat that of `seats.py`; here both meet vLLM's queues. Requests out of sight
keep their seats and KV blocks. Chunked prefill, preemption and priorities work within a mask as
they do without masks.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from bmt_server.ipc.stats_files import StatsWriter, TurnStats
from bmt_server.scheduler.admission_policy import Queue, Seats
from bmt_server.scheduler.request_queue import MaskQueue, mask_of
from bmt_server.scheduler.turn_policy import Demand, Turns
from bmt_server.settings import Settings


class ExclusiveScheduler(Scheduler):
    """vLLM's scheduler (`v1/core/sched/scheduler.py`), one mask a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: list[Request]
        self.max_num_active_reqs: int
        self.waiting: MaskQueue = MaskQueue(self.policy)
        self.kv_holding_waiting: MaskQueue = MaskQueue(self.policy)
        self.clock: Callable[[], float] = time.monotonic
        settings = Settings.from_env()
        if settings is None:
            raise RuntimeError(f"{type(self).__name__} runs only with bmt_server's settings")
        self.turns = Turns(settings.scatter_quantum_s, settings.scatter_max_wait_s)
        self.seats = Seats(settings.scatter_max_wait_s, self.max_num_active_reqs)
        self.figures = TurnStats(
            pid=os.getpid(),
            engine=self.parallel_config.data_parallel_index,
            max_wait_s=settings.scatter_max_wait_s,
        )
        self._changed: Callable[[], None] = lambda: None
        if settings.stats_dir:
            writer = StatsWriter(settings.stats_dir, os.getpid(), lambda: self.figures)
            self._changed = writer.changed
        # When each unfinished request came, by the scheduler's own clock.
        self._arrived: dict[str, float] = {}
        # Masks that could run nothing, for want of KV blocks say, since the last step that ran.
        self._stuck: set[int] = set()
        # Steps under way, oldest first: tokens, and when they were scheduled.
        self._under_way: deque[tuple[int, float]] = deque()
        self._ended = 0.0
        # The mask of the last step, which the weights hold.
        self._last = -1

    def add_request(self, request: Request) -> None:
        now = self.clock()
        self._arrived.setdefault(request.request_id, now)
        self.turns.arrived(now, mask_of(request))
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._arrived.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of one mask. Same result type as vLLM's.

        The step is empty where the chosen mask turns out not to be able to run. It is returned all
        the same, for it tells workers which requests ended; the next call tries another mask.
        """
        now = self.clock()
        ready = self._ready()
        self.seats.update(now, self._queues(ready))
        free = self._free_seats()
        demands = self._demands(ready, free)
        if self._stuck.issuperset(demands):
            self._stuck.clear()
        able = {m: d for m, d in demands.items() if m not in self._stuck}
        # With nothing to run the stock scheduler is shown nothing: no mask has the id -1.
        mask = self.turns.choose(now, able) if able else -1
        seats = self._open_seats(mask, free)
        output, joined = self._schedule_only(mask, seats, *args, **kwargs)
        tokens = output.total_num_scheduled_tokens
        if able:
            left = self.max_num_scheduled_tokens - tokens
            self.seats.joined(mask, joined, min(ready[mask], seats) if left > 0 else 0)
            self._account(now, mask, tokens, demands)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.total_num_scheduled_tokens:
            tokens, began = self._under_way.popleft()
            # With steps scheduled ahead, a step runs only when the one before it has ended.
            seconds = self.clock() - max(began, self._ended)
            self._ended = self.clock()
            self.turns.times.note(tokens, seconds)
            self.figures.turn_seconds += seconds
        return super().update_from_output(scheduler_output, *args, **kwargs)

    def _schedule_only(self, mask: int, seats: int, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Stock scheduling of one mask's requests, of which `seats` may join those that run."""
        hidden = [r for r in self.running if mask_of(r) != mask]
        self.running = [r for r in self.running if mask_of(r) == mask]
        before, limit = len(self.running), self.max_num_active_reqs
        self.max_num_active_reqs = before + self.num_waiting_for_streaming_input + seats
        self.waiting.only = self.kv_holding_waiting.only = mask
        try:
            output = super().schedule(*args, **kwargs)
            joined = max(0, len(self.running) - before)
        finally:
            self.waiting.only = self.kv_holding_waiting.only = None
            self.max_num_active_reqs = limit
            self.running = hidden + self.running
        return output, joined

    def _account(self, now: float, mask: int, tokens: int, demands: dict[int, Demand]) -> None:
        if not tokens:
            self._stuck.add(mask)
            return
        self._stuck.clear()
        self._under_way.append((tokens, now))
        figures = self.figures
        waited = self.turns.began(now, mask)
        if mask != self._last:
            self._last = mask
            figures.turns += 1
            figures.waited(waited)
        figures.turn_steps += 1
        figures.masks = len(demands)
        figures.guarantee_s = self.turns.guarantee_s(demands)
        self._changed()

    def _free_seats(self) -> int:
        held = len(self.running) + self.num_waiting_for_streaming_input
        return max(0, self.max_num_active_reqs - held)

    def _open_seats(self, mask: int, free: int) -> int:
        # Those that hold KV blocks already may always join: others may wait for their blocks.
        holding = len(self.kv_holding_waiting.masks().get(mask, ()))
        return max(self.seats.open_to(mask, free), min(free, holding))

    def _ready(self) -> Counter[int]:
        """Waiting requests of each mask that a seat and KV blocks are all they lack."""
        ready: Counter[int] = Counter()
        queues = [self.kv_holding_waiting]
        if self.pause_state == PauseState.UNPAUSED:
            queues.append(self.waiting)
        for queue in queues:
            for mask, own in queue.masks().items():
                ready[mask] += len(own)
        for request in list(self.deferred_waiting):
            # Also lets go what has become ready, as the stock scan does.
            if not self._handle_blocked_waiting_request(request):
                ready[mask_of(request)] -= 1
        return ready

    def _queues(self, ready: Counter[int]) -> dict[int, Queue]:
        now = self.clock()
        queues = {}
        for mask, count in ready.items():
            if count > 0 and mask in self.waiting.masks():
                first = self.waiting.masks()[mask].peek_request()
                queues[mask] = Queue(count, self._arrived.get(first.request_id, now))
        return queues

    def _demands(self, ready: Counter[int], free: int) -> dict[int, Demand]:
        running: dict[int, list[Request]] = {}
        for request in self.running:
            running.setdefault(mask_of(request), []).append(request)
        demands = {}
        for mask in running.keys() | ready.keys():
            own = running.get(mask, [])
            join = max(0, min(ready[mask], self._open_seats(mask, free)))
            if own or join:
                demands[mask] = Demand(len(own) + join, self._tokens(mask, own, join))
        return demands

    def _tokens(self, mask: int, own: list[Request], join: int) -> int:
        """Tokens of a step of the mask's running requests and of `join` that wait."""
        budget = self.max_num_scheduled_tokens
        tokens = sum(
            r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens for r in own
        )
        for request in self.waiting.masks().get(mask, ()):
            if not join or tokens >= budget:
                break
            tokens += request.num_tokens - request.num_computed_tokens
            join -= 1
        return min(tokens, budget)


class ExclusiveAsyncScheduler(ExclusiveScheduler, AsyncScheduler):
    """The same where vLLM schedules a step while the one before it runs (`async_scheduler.py`).

    The worker changes the weights between steps, in their order, so scheduling ahead is as safe
    as without masks; a request that arrives is considered one step later.
    """
