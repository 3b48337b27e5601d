"""Free seats on a virtual clock: every request gets one, and groups stay together."""

from __future__ import annotations

from collections import deque

from bmt_server.scheduler.admission_policy import Queue, Seats
from hypothesis import given, settings
from hypothesis import strategies as st


def q(*waiting: float) -> Queue:
    return Queue(len(waiting), min(waiting))


def test_before_the_bound_the_mask_in_turn_takes_what_is_free():
    seats = Seats(1.0, 8)
    seats.update(0.5, {1: q(0.0, 0.1), 2: q(0.2)})
    assert seats.right is None
    assert seats.open_to(1, 4) == seats.open_to(2, 4) == 4


def test_after_the_bound_the_longest_waiting_masks_group_goes_first():
    seats = Seats(1.0, 8)
    queues = {1: q(*[5.0] * 9), 2: q(0.0, 0.5, 4.0), 3: q(0.1)}
    seats.update(5.0, queues)
    assert seats.right == 2
    assert seats.open_to(2, 2) == 2
    assert seats.open_to(1, 2) == 0, "two seats of the three that mask 2 is owed"
    assert seats.open_to(1, 5) == 2
    seats.joined(2, 2, 2)
    seats.update(5.1, {**queues, 2: q(4.0)})
    assert seats.right == 2, "until all that waited with it have joined"
    seats.joined(2, 1, 1)
    seats.update(5.2, {1: queues[1], 2: q(5.15), 3: queues[3]})
    assert seats.right == 3


def test_who_joins_the_queue_later_waits_for_the_next_time():
    seats = Seats(1.0, 8)
    seats.update(5.0, {1: q(0.0, 0.1), 2: q(0.2)})
    seats.joined(1, 1, 1)
    seats.update(5.1, {1: q(0.1, 5.0, 5.0, 5.0), 2: q(0.2)})
    seats.joined(1, 1, 1)
    seats.update(5.2, {1: q(5.0, 5.0, 5.0), 2: q(0.2)})
    assert seats.right == 2


def test_what_lacks_blocks_is_helped_by_admitting_nothing_else():
    seats = Seats(1.0, 8)
    queues = {1: q(0.0), 2: q(4.9)}
    seats.update(5.0, queues)
    assert seats.open_to(2, 9) == 8
    seats.joined(1, 0, 1)
    assert seats.open_to(2, 9) == 0
    seats.joined(1, 1, 1)
    seats.update(5.1, {2: queues[2]})
    assert seats.open_to(2, 9) == 9


def overtaken(seats: Seats | None, arrivals, total: int, bound: float) -> int:
    """How many later requests of others joined, at most, before one that was over the bound.

    Mask 0 always has requests waiting and asks before and after all others; `total` seats last a
    second each. Without `seats` whoever asks takes what is free.
    """
    now, worst = 0.0, 0
    waiting: dict[int, deque[float]] = {0: deque()}
    passed: dict[tuple[int, float, int], int] = {}
    held: list[float] = []
    for mask, count in arrivals:
        now += 0.1
        waiting.setdefault(mask, deque()).extend([now] * count)
        waiting[0].append(now)
        held = [end for end in held if end > now]
        for turn in [*sorted(waiting), 0]:
            own, free = waiting[turn], total - len(held)
            if seats is not None:
                seats.update(now, {m: Queue(len(w), w[0]) for m, w in waiting.items() if w})
                free = seats.open_to(turn, free)
            could = min(len(own), free)
            for _ in range(could):
                came = own.popleft()
                held.append(now + 1.0)
                for m, queue in waiting.items():
                    for i, other in enumerate(queue):
                        if m != turn and other < came and now - other >= bound:
                            key = (m, other, len(queue) - i)
                            passed[key] = passed.get(key, 0) + 1
                            worst = max(worst, passed[key])
            if seats is not None:
                seats.joined(turn, could, could)
    return worst


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=20, max_size=80),
    st.integers(1, 4),
)
def test_a_request_is_overtaken_by_less_than_a_batch_of_each_other_mask(arrivals, total):
    arrivals += [(0, 1)] * 150
    assert overtaken(Seats(0.5, total), arrivals, total, 0.5) <= 6 * total


def test_without_the_rule_a_busy_mask_takes_every_seat():
    """Ten requests a second for eight seats, and one of another mask."""
    arrivals = [(0, 0)] * 20 + [(1, 1)] + [(0, 0)] * 200
    assert overtaken(None, arrivals, 8, 0.5) > 100
    assert overtaken(Seats(0.5, 8), arrivals, 8, 0.5) <= 8
