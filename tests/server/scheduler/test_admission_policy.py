"""Admission policy on a virtual clock: every request gets a slot, and groups stay together."""

from __future__ import annotations

from collections import deque

from bmt_server.scheduler.admission_policy import AdmissionPolicy, WaitingGroup
from hypothesis import given, settings
from hypothesis import strategies as st


def group(*waiting: float) -> WaitingGroup:
    return WaitingGroup(len(waiting), min(waiting))


def test_before_the_bound_the_mask_in_turn_takes_free_slots():
    policy = AdmissionPolicy(1.0, 8)
    policy.update(0.5, {1: group(0.0, 0.1), 2: group(0.2)})
    assert policy.reserved_for is None
    assert policy.available_slots(1, 4) == policy.available_slots(2, 4) == 4


def test_after_the_bound_the_longest_waiting_group_goes_first():
    policy = AdmissionPolicy(1.0, 8)
    groups = {1: group(*[5.0] * 9), 2: group(0.0, 0.5, 4.0), 3: group(0.1)}
    policy.update(5.0, groups)
    assert policy.reserved_for == 2
    assert policy.available_slots(2, 2) == 2
    assert policy.available_slots(1, 2) == 0, "two of the three slots that are reserved for mask 2"
    assert policy.available_slots(1, 5) == 2
    policy.record_admitted(2, 2, 2)
    policy.update(5.1, {**groups, 2: group(4.0)})
    assert policy.reserved_for == 2, "until all requests that waited with it are admitted"
    policy.record_admitted(2, 1, 1)
    policy.update(5.2, {1: groups[1], 2: group(5.15), 3: groups[3]})
    assert policy.reserved_for == 3


def test_later_requests_wait_for_the_next_reservation():
    policy = AdmissionPolicy(1.0, 8)
    policy.update(5.0, {1: group(0.0, 0.1), 2: group(0.2)})
    policy.record_admitted(1, 1, 1)
    policy.update(5.1, {1: group(0.1, 5.0, 5.0, 5.0), 2: group(0.2)})
    policy.record_admitted(1, 1, 1)
    policy.update(5.2, {1: group(5.0, 5.0, 5.0), 2: group(0.2)})
    assert policy.reserved_for == 2


def test_a_request_that_lacks_blocks_stops_all_other_admissions():
    policy = AdmissionPolicy(1.0, 8)
    groups = {1: group(0.0), 2: group(4.9)}
    policy.update(5.0, groups)
    assert policy.available_slots(2, 9) == 8
    policy.record_admitted(1, 0, 1)
    assert policy.available_slots(2, 9) == 0
    policy.record_admitted(1, 1, 1)
    policy.update(5.1, {2: groups[2]})
    assert policy.available_slots(2, 9) == 9


def overtaken(policy: AdmissionPolicy | None, arrivals, total: int, bound: float) -> int:
    """Most requests of other masks that arrived later and were admitted before an overdue one.

    Mask 0 always has waiting requests and comes before and after all others; `total` slots are held
    for a second each. Without a policy every mask takes all free slots.
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
            if policy is not None:
                policy.update(now, {m: WaitingGroup(len(w), w[0]) for m, w in waiting.items() if w})
                free = policy.available_slots(turn, free)
            possible = min(len(own), free)
            for _ in range(possible):
                came = own.popleft()
                held.append(now + 1.0)
                for m, queue in waiting.items():
                    for i, other in enumerate(queue):
                        if m != turn and other < came and now - other >= bound:
                            key = (m, other, len(queue) - i)
                            passed[key] = passed.get(key, 0) + 1
                            worst = max(worst, passed[key])
            if policy is not None:
                policy.record_admitted(turn, possible, possible)
    return worst


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=20, max_size=80),
    st.integers(1, 4),
)
def test_a_request_is_overtaken_by_less_than_a_batch_of_each_other_mask(arrivals, total):
    arrivals += [(0, 1)] * 150
    assert overtaken(AdmissionPolicy(0.5, total), arrivals, total, 0.5) <= 6 * total


def test_without_the_policy_a_busy_mask_takes_every_slot():
    """Ten requests per second for eight slots, and one request of another mask."""
    arrivals = [(0, 0)] * 20 + [(1, 1)] + [(0, 0)] * 200
    assert overtaken(None, arrivals, 8, 0.5) > 100
    assert overtaken(AdmissionPolicy(0.5, 8), arrivals, 8, 0.5) <= 8
