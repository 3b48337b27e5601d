"""vLLM's queue of waiting requests, parted by mask, so that one mask can be looked at alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm.v1.core.sched.request_queue import (
    RequestQueue,
    SchedulingPolicy,
    create_request_queue,
)
from vllm.v1.request import Request


def mask_of(request: Request) -> int:
    """The adapter id of a request; 0 is the base model."""
    return request.lora_request.lora_int_id if request.lora_request else 0


class MaskQueue(RequestQueue):
    """A queue of vLLM's policy for each mask (vLLM 0.32.0, `v1/core/sched/request_queue.py`).

    While `only` is a mask, the queue seems to hold that mask's requests alone. Hiding the others
    so costs nothing and leaves every mask's order as it is. vLLM takes requests out only within a
    step, where `only` is set; between steps it adds, counts and removes named ones.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._queues: dict[int, RequestQueue] = {}
        self.only: int | None = None

    def masks(self) -> dict[int, RequestQueue]:
        """The masks that have requests here, each with its queue."""
        return self._queues

    def add_request(self, request: Request) -> None:
        self._of(mask_of(request)).add_request(request)

    def prepend_request(self, request: Request) -> None:
        self._of(mask_of(request)).prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        parted: dict[int, list[Request]] = {}
        for request in requests:
            parted.setdefault(mask_of(request), []).append(request)
        for mask, own in parted.items():
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
        parted: dict[int, list[Request]] = {}
        for request in requests:
            parted.setdefault(mask_of(request), []).append(request)
        for mask, own in parted.items():
            # vLLM asks both of its queues to remove what either may hold.
            if mask in self._queues:
                self._queues[mask].remove_requests(own)
        self._prune()

    def __bool__(self) -> bool:
        return len(self) > 0

    def __len__(self) -> int:
        return sum(len(queue) for _, queue in self._seen())

    def __iter__(self) -> Iterator[Request]:
        for _, queue in self._seen():
            yield from queue

    def _of(self, mask: int) -> RequestQueue:
        queue = self._queues.get(mask)
        if queue is None:
            queue = self._queues[mask] = create_request_queue(self._policy)
        return queue

    def _seen(self) -> list[tuple[int, RequestQueue]]:
        if self.only is None:
            return list(self._queues.items())
        queue = self._queues.get(self.only)
        return [] if queue is None else [(self.only, queue)]

    def _first(self) -> tuple[int, RequestQueue]:
        for mask, queue in self._seen():
            if queue:
                return mask, queue
        raise IndexError("no request of the mask in view is waiting")

    def _prune(self) -> None:
        for mask in [m for m, queue in self._queues.items() if not queue]:
            del self._queues[mask]
