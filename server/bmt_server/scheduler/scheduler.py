"""vLLM scheduler of mode `scatter`: every step has requests of one mask only.

The weights hold one mask at a time in this mode, so a step must not mix masks. Stock scheduling is
reused unchanged: for one call it sees only the requests of one mask. `turn_policy.py` chooses the
mask, `admission_policy.py` assigns free slots, and this module applies both to vLLM's queues.
Hidden requests keep their slots and KV blocks. Chunked prefill, preemption and priorities work
within a mask as they do without masks.
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
from bmt_server.scheduler.admission_policy import AdmissionPolicy, WaitingGroup
from bmt_server.scheduler.request_queue import MaskQueue, mask_of
from bmt_server.scheduler.turn_policy import Demand, TurnPolicy
from bmt_server.settings import Settings


class ExclusiveScheduler(Scheduler):
    """vLLM's scheduler (`v1/core/sched/scheduler.py`) with one mask per step.

    Raises RuntimeError if no settings were exported.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: list[Request]
        self.max_num_active_reqs: int
        self.waiting: MaskQueue = MaskQueue(self.policy)
        self.kv_holding_waiting: MaskQueue = MaskQueue(self.policy)
        self.clock: Callable[[], float] = time.monotonic
        settings = Settings.from_env()
        if settings is None:
            raise RuntimeError(
                f"{type(self).__name__} needs the settings of bmt_server; start it with "
                "`bmt-server serve --mask-mode scatter`"
            )
        self.turn_policy = TurnPolicy(settings.scatter_quantum_s, settings.scatter_max_wait_s)
        self.admission_policy = AdmissionPolicy(
            settings.scatter_max_wait_s, self.max_num_active_reqs
        )
        self.turn_stats = TurnStats(
            pid=os.getpid(),
            engine=self.parallel_config.data_parallel_index,
            max_wait_s=settings.scatter_max_wait_s,
        )
        self._changed: Callable[[], None] = lambda: None
        if settings.stats_dir:
            writer = StatsWriter(settings.stats_dir, os.getpid(), lambda: self.turn_stats)
            self._changed = writer.changed
        # Arrival of each unfinished request, by the scheduler's own clock.
        self._arrived: dict[str, float] = {}
        # Masks that could not run since the last step that ran, for lack of KV blocks for example.
        self._stuck: set[int] = set()
        # Steps in flight, oldest first: tokens, and the time of their scheduling.
        self._in_flight: deque[tuple[int, float]] = deque()
        self._last_step_end = 0.0
        # The mask of the last step, which the weights hold.
        self._last_mask = -1

    def add_request(self, request: Request) -> None:
        now = self.clock()
        self._arrived.setdefault(request.request_id, now)
        self.turn_policy.record_arrival(now, mask_of(request))
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._arrived.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule one step of one mask. Same result type as vLLM's.

        The step is empty if the chosen mask cannot run. It is returned nevertheless, because it
        carries the finished requests to the workers; the next call tries another mask.
        """
        now = self.clock()
        ready = self._ready()
        self.admission_policy.update(now, self._waiting_groups(ready))
        free = self._free_slots()
        demands = self._demands(ready, free)
        if self._stuck.issuperset(demands):
            self._stuck.clear()
        able = {m: d for m, d in demands.items() if m not in self._stuck}
        # Without a runnable mask the stock scheduler sees no requests: no mask has the id -1.
        mask = self.turn_policy.choose(now, able) if able else -1
        slots = self._available_slots(mask, free)
        output, admitted = self._schedule_only(mask, slots, *args, **kwargs)
        tokens = output.total_num_scheduled_tokens
        if able:
            left = self.max_num_scheduled_tokens - tokens
            possible = min(ready[mask], slots) if left > 0 else 0
            self.admission_policy.record_admitted(mask, admitted, possible)
            self._account(now, mask, tokens, demands)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.total_num_scheduled_tokens:
            tokens, scheduled = self._in_flight.popleft()
            # With asynchronous scheduling a step starts only after the previous one has ended.
            seconds = self.clock() - max(scheduled, self._last_step_end)
            self._last_step_end = self.clock()
            self.turn_policy.step_times.record(tokens, seconds)
            self.turn_stats.turn_seconds += seconds
        return super().update_from_output(scheduler_output, *args, **kwargs)

    def _schedule_only(self, mask: int, slots: int, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Run stock scheduling on one mask's requests and admit at most `slots` of them.

        Returns vLLM's output and the number of admitted requests.
        """
        hidden = [r for r in self.running if mask_of(r) != mask]
        self.running = [r for r in self.running if mask_of(r) == mask]
        before, limit = len(self.running), self.max_num_active_reqs
        self.max_num_active_reqs = before + self.num_waiting_for_streaming_input + slots
        self.waiting.only = self.kv_holding_waiting.only = mask
        try:
            output = super().schedule(*args, **kwargs)
            admitted = max(0, len(self.running) - before)
        finally:
            self.waiting.only = self.kv_holding_waiting.only = None
            self.max_num_active_reqs = limit
            self.running = hidden + self.running
        return output, admitted

    def _account(self, now: float, mask: int, tokens: int, demands: dict[int, Demand]) -> None:
        if not tokens:
            self._stuck.add(mask)
            return
        self._stuck.clear()
        self._in_flight.append((tokens, now))
        stats = self.turn_stats
        waited = self.turn_policy.record_step(now, mask)
        if mask != self._last_mask:
            self._last_mask = mask
            stats.turns += 1
            stats.waited(waited)
        stats.turn_steps += 1
        stats.masks = len(demands)
        stats.guarantee_s = self.turn_policy.guarantee_s(demands)
        self._changed()

    def _free_slots(self) -> int:
        held: int = len(self.running) + self.num_waiting_for_streaming_input
        return max(0, self.max_num_active_reqs - held)

    def _available_slots(self, mask: int, free: int) -> int:
        # Requests that hold KV blocks are always admitted: others may wait for these blocks.
        holding = len(self.kv_holding_waiting.masks().get(mask, ()))
        return max(self.admission_policy.available_slots(mask, free), min(free, holding))

    def _ready(self) -> Counter[int]:
        """Number of waiting requests per mask that lack only a slot and KV blocks."""
        ready: Counter[int] = Counter()
        queues = [self.kv_holding_waiting]
        if self.pause_state == PauseState.UNPAUSED:
            queues.append(self.waiting)
        for queue in queues:
            for mask, own in queue.masks().items():
                ready[mask] += len(own)
        for request in list(self.deferred_waiting):
            # This call also releases requests that have become ready, as the stock scan does.
            if not self._handle_blocked_waiting_request(request):
                ready[mask_of(request)] -= 1
        return ready

    def _waiting_groups(self, ready: Counter[int]) -> dict[int, WaitingGroup]:
        now = self.clock()
        groups = {}
        for mask, count in ready.items():
            if count > 0 and mask in self.waiting.masks():
                first = self.waiting.masks()[mask].peek_request()
                groups[mask] = WaitingGroup(count, self._arrived.get(first.request_id, now))
        return groups

    def _demands(self, ready: Counter[int], free: int) -> dict[int, Demand]:
        running: dict[int, list[Request]] = {}
        for request in self.running:
            running.setdefault(mask_of(request), []).append(request)
        demands = {}
        for mask in running.keys() | ready.keys():
            own = running.get(mask, [])
            admitted = max(0, min(ready[mask], self._available_slots(mask, free)))
            if own or admitted:
                demands[mask] = Demand(len(own) + admitted, self._tokens(mask, own, admitted))
        return demands

    def _tokens(self, mask: int, own: list[Request], admitted: int) -> int:
        """Tokens of a step with the mask's running requests and `admitted` waiting ones."""
        budget: int = self.max_num_scheduled_tokens
        tokens: int = sum(
            r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens for r in own
        )
        for request in self.waiting.masks().get(mask, ()):
            if not admitted or tokens >= budget:
                break
            tokens += request.num_tokens - request.num_computed_tokens
            admitted -= 1
        return min(tokens, budget)


class ExclusiveAsyncScheduler(ExclusiveScheduler, AsyncScheduler):
    """The same for vLLM's asynchronous scheduling (`v1/core/sched/async_scheduler.py`).

    vLLM schedules a step while the previous one runs. The worker switches masks between steps, in
    their order, so this is as safe as without masks; a new request is considered one step later.
    """


def exclusive_scheduler(vllm_config: Any, **kwargs: Any) -> ExclusiveScheduler:
    """The scheduler that fits `async_scheduling`; named by vLLM's option `scheduler_cls`.

    vLLM decides on asynchronous scheduling after it has read its options.
    """
    asynchronous = vllm_config.scheduler_config.async_scheduling
    kind = ExclusiveAsyncScheduler if asynchronous else ExclusiveScheduler
    return kind(vllm_config=vllm_config, **kwargs)
