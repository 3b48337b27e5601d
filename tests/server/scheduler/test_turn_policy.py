"""Turn policy on a virtual clock: no starvation, turns shrink as needed and no further."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from bmt_server.scheduler.step_time_estimate import StepTimeEstimate
from bmt_server.scheduler.turn_policy import Demand, TurnPolicy
from hypothesis import given, settings
from hypothesis import strategies as st


def cost(tokens: int) -> float:
    """Seconds of a step: a fixed part and a part per token, as on real hardware."""
    return 0.016 + 0.0008 * tokens


@dataclass
class World:
    """Masks with constant numbers of requests, which arrive and leave."""

    policy: TurnPolicy
    now: float = 0.0
    present: dict[int, int] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    waits: list[tuple[int, float]] = field(default_factory=list)
    served: list[int] = field(default_factory=list)

    def measured(self, *sizes: int) -> None:
        for size in sizes:
            self.policy.step_times.record(size, cost(size))

    def arrive(self, mask: int, requests: int) -> None:
        self.present[mask] = requests
        self.since[mask] = self.now
        self.policy.record_arrival(self.now, mask)

    def leave(self, mask: int) -> None:
        del self.present[mask], self.since[mask]

    def step(self) -> int:
        mask = self.policy.choose(self.now, {m: Demand(n, n) for m, n in self.present.items()})
        waited = self.policy.record_step(self.now, mask)
        # A mask that left and returned between two steps counts from its last step.
        assert waited >= self.now - self.since[mask] - 1e-9
        self.waits += [(m, self.now - t) for m, t in self.since.items()]
        self.since[mask] = self.now
        self.served.append(mask)
        self.now += cost(self.present[mask])
        self.policy.step_times.record(self.present[mask], cost(self.present[mask]))
        return mask

    def longest(self) -> float:
        return max(w for _, w in self.waits)


@settings(max_examples=150, deadline=None)
@given(
    bound=st.floats(0.02, 3.0),
    quantum=st.floats(0.0, 1.0),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=24),
    seed=st.integers(0, 1 << 16),
)
def test_no_mask_waits_beyond_the_bound_or_a_step_of_each(bound, quantum, sizes, seed):
    """The documented guarantee under random traffic: max(bound, N * longest step)."""
    rng = random.Random(seed)
    world = World(TurnPolicy(quantum, bound))
    world.measured(*range(1, 41))
    most = 0
    for _ in range(300):
        for mask, requests in enumerate(sizes):
            if mask not in world.present and rng.random() < 0.05:
                world.arrive(mask, requests)
            elif mask in world.present and mask in world.served and rng.random() < 0.01:
                world.leave(mask)
        if not world.present:
            world.arrive(0, sizes[0])
        most = max(most, len(world.present))
        world.step()
    assert world.longest() <= max(bound, most * cost(max(sizes))) + 1e-9


def test_turns_use_the_whole_bound():
    """If all steps fit, the large mask keeps the engine for most of the bound."""
    world = World(TurnPolicy(0.05, 1.0))
    world.measured(1, 30)
    world.arrive(0, 30)
    for mask in range(1, 6):
        world.arrive(mask, 1)
    while world.now < 20:
        world.step()
    assert world.longest() <= 1.0
    busy = sum(cost(30) for m in world.served if m == 0)
    assert busy / world.now > 0.6
    small = [w for m, w in world.waits if m]
    assert max(small) > 0.8, "waiting masks wait up to the bound"


def test_turns_shrink_to_one_step_if_their_sum_exceeds_the_bound():
    world = World(TurnPolicy(0.05, 0.1))
    world.measured(4)
    for mask in range(20):
        world.arrive(mask, 4)
    for _ in range(200):
        world.step()
    assert all(a != b for a, b in zip(world.served, world.served[1:], strict=False))
    assert world.longest() <= 20 * cost(4) + 1e-9
    assert {world.served.count(m) for m in range(20)} == {10}


def test_an_endless_mask_starves_no_other():
    world = World(TurnPolicy(10.0, 0.5))
    world.measured(1, 64)
    world.arrive(0, 64)
    world.step()
    world.arrive(7, 1)
    came = world.now
    while world.step() != 7:
        pass
    assert world.now - cost(1) - came <= 0.5


def test_a_turn_lasts_a_quantum_then_the_most_requests_are_next():
    world = World(TurnPolicy(0.1, 100.0))
    world.measured(1, 2, 3)
    world.arrive(1, 1)
    world.step()
    world.arrive(2, 2)
    world.arrive(3, 3)
    while world.step() == 1:
        pass
    assert world.served.count(1) == 6, "six steps of 16.8 ms begin within 100 ms"
    assert world.served[-1] == 3
    # Ties keep the mask in turn: a change would cost a switch.
    world.present[2] = 3
    for _ in range(20):
        world.step()
    assert set(world.served[7:]) == {3}


def test_the_reported_guarantee_covers_the_masks_present():
    policy = TurnPolicy(0.05, 1.0)
    policy.step_times.record(1, 0.1)
    demands = {m: Demand(1, 1) for m in range(4)}
    assert policy.guarantee_s(demands) == 1.0
    demands |= {m: Demand(1, 1) for m in range(20)}
    assert policy.guarantee_s(demands) == pytest.approx(2.1)


def test_the_estimate_is_the_longest_step_of_its_size():
    times = StepTimeEstimate()
    assert times.seconds(5) == 0
    times.record(4, 0.02)
    times.record(6, 0.03)
    assert times.seconds(4) == 0.03
    assert times.seconds(1) == 0.03, "smaller than the smallest known: no longer"
    assert times.seconds(7) == pytest.approx(0.035), "larger: at most in proportion"
    assert times.seconds(64) == pytest.approx(0.32)
    times.record(64, 0.1)
    assert times.seconds(20) == 0.1, "and at most a known larger step"
    assert times.seconds(5) == 0.03
    for _ in range(16):
        times.record(5, 0.01)
    assert times.seconds(5) == 0.01, "a slow step is forgotten"
