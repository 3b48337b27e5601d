"""vLLM's queue of waiting requests, split by mask, with a view of one mask alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm.v1.core.sched.request_queue import (
    RequestQueue,
    SchedulingPolicy,
    create_request_queue,
)
from vllm.v1.request import Request


def mask_of(request: Request) -> int:
    """The adapter id of a request; 0 is the base."""
    return request.lora_request.lora_int_id if request.lora_request else 0


class MaskQueue(RequestQueue):
    """One queue with vLLM's policy per mask (vLLM's `v1/core/sched/request_queue.py`).

    While `only` is a mask, the queue shows that mask's requests alone. This hides the others at no
    cost and keeps every mask's order. vLLM pops requests only within a step, while `only` is set;
    between steps it adds, counts and removes specific requests.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._queues: dict[int, RequestQueue] = {}
        self.only: int | None = None

    def masks(self) -> dict[int, RequestQueue]:
        """Queues by mask, of masks with requests."""
        return self._queues

    def add_request(self, request: Request) -> None:
        self._of(mask_of(request)).add_request(request)

    def prepend_request(self, request: Request) -> None:
        self._of(mask_of(request)).prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        by_mask: dict[int, list[Request]] = {}
        for request in requests:
            by_mask.setdefault(mask_of(request), []).append(request)
        for mask, own in by_mask.items():
            self._of(mask).prepend_requests(own)

    def pop_request(self) -> Request:
        mask, queue = self._first()
        request = queue.pop_request()
        if not queue:
            del self._queues[mask]
        return request

    def peek_request(self) -> Request:
        return self._first()[1].peek_request()

    def remove_request(self, request: Request) -> None:
        self._of(mask_of(request)).remove_request(request)
        self._prune()

    def remove_requests(self, requests: Iterable[Request]) -> None:
        by_mask: dict[int, list[Request]] = {}
        for request in requests:
            by_mask.setdefault(mask_of(request), []).append(request)
        for mask, own in by_mask.items():
            # vLLM calls this on both of its queues for requests that either may hold.
            if mask in self._queues:
                self._queues[mask].remove_requests(own)
        self._prune()

    def __bool__(self) -> bool:
        return len(self) > 0

    def __len__(self) -> int:
        return sum(len(queue) for _, queue in self._visible())

    def __iter__(self) -> Iterator[Request]:
        for _, queue in self._visible():
            yield from queue

    def _of(self, mask: int) -> RequestQueue:
        queue = self._queues.get(mask)
        if queue is None:
            queue = self._queues[mask] = create_request_queue(self._policy)
        return queue

    def _visible(self) -> list[tuple[int, RequestQueue]]:
        if self.only is None:
            return list(self._queues.items())
        queue = self._queues.get(self.only)
        return [] if queue is None else [(self.only, queue)]

    def _first(self) -> tuple[int, RequestQueue]:
        for mask, queue in self._visible():
            if queue:
                return mask, queue
        raise IndexError(f"no request of mask {self.only} is waiting (None: of any mask)")

    def _prune(self) -> None:
        for mask in [m for m, queue in self._queues.items() if not queue]:
            del self._queues[mask]
