"""Switch policy of mode `auto` under cost models: competitive ratio below 2, no thrashing."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from bmt_server.worker.kernels.costs import GPU, NATIVE, PORTABLE, KernelCosts
from bmt_server.worker.switch_policy import SwitchPolicy
from hypothesis import given, settings
from hypothesis import strategies as st

# A step: the mask of all its tokens (None if it is mixed or base only) and their number.
Step = tuple[str | None, int]
LAYERS = 30
ZEROS = {"a": 50_000, "b": 50_000, "c": 5_000, "d": 400_000}


@dataclass
class Bill:
    """Cost of serving a trace: corrections and switches, each with the switch back."""

    seconds: float = 0.0
    switches: int = 0


def follow(costs: KernelCosts, trace: list[Step]) -> Bill:
    """Cost of the policy; the switch back is charged together with the switch."""
    policy, held, bill = SwitchPolicy(costs, LAYERS), None, Bill()
    for mask, tokens in trace:
        if mask is None:
            policy.end_run("mixed")
            held = None
        elif policy.run_in_place(mask, ZEROS[mask], tokens, held):
            if held != mask:
                bill.seconds += 2 * costs.switch(LAYERS, ZEROS[mask])
                bill.switches += 1
            held = mask
        else:
            bill.seconds += costs.correction(LAYERS, ZEROS[mask], tokens)
            held = None
    return bill


def always_corrected(costs: KernelCosts, trace: list[Step]) -> float:
    return sum(costs.correction(LAYERS, ZEROS[m], t) for m, t in trace if m)


def always_in_place(costs: KernelCosts, trace: list[Step]) -> Bill:
    bill, held = Bill(), None
    for mask, _ in trace:
        if mask and mask != held:
            bill.seconds += 2 * costs.switch(LAYERS, ZEROS[mask])
            bill.switches += 1
        held = mask
    return bill


def hindsight(costs: KernelCosts, trace: list[Step]) -> float:
    """Cost of the cheaper choice for each run."""
    total = 0.0
    for mask, run in itertools.groupby(trace, key=lambda step: step[0]):
        if mask:
            price = 2 * costs.switch(LAYERS, ZEROS[mask])
            total += min(price, always_corrected(costs, list(run)))
    return total


costs_drawn = st.builds(
    KernelCosts,
    switch_layer=st.floats(0, 1e-4),
    switch_zero=st.floats(1e-12, 1e-8),
    correct_layer=st.floats(0, 1e-4),
    correct_zero=st.floats(0, 1e-8),
    correct_token=st.floats(1e-12, 1e-8),
)


@settings(max_examples=300, deadline=None)
@given(
    costs=costs_drawn | st.sampled_from([PORTABLE, NATIVE, GPU]),
    seed=st.integers(0, 1 << 20),
    stay=st.floats(0, 0.99),
    most=st.sampled_from([1, 8, 512]),
)
def test_cost_is_below_twice_the_better_fixed_strategy_and_hindsight(costs, seed, stay, most):
    """Random traces, from alternation at every step to runs of hundreds of steps."""
    rng = random.Random(seed)
    trace: list[Step] = []
    owner: str | None = None
    for _ in range(300):
        if rng.random() > stay:
            owner = rng.choice([None, *ZEROS])
        trace.append((owner, rng.randint(1, most)))
    ours = follow(costs, trace).seconds
    fixed = min(always_corrected(costs, trace), always_in_place(costs, trace).seconds)
    assert ours <= 2 * hindsight(costs, trace) * (1 + 1e-9)
    assert ours <= 2 * fixed * (1 + 1e-9)


def test_the_bound_is_tight_and_an_immediate_switch_exceeds_it():
    """Worst case of the policy: each run ends right after its switch."""
    one = PORTABLE.correction(LAYERS, ZEROS["a"], 1)
    enough = int(2 * PORTABLE.switch(LAYERS, ZEROS["a"]) / one) + 1
    trace: list[Step] = ([("a", 1)] * enough + [(None, 1)]) * 50
    ratio = follow(PORTABLE, trace).seconds / hindsight(PORTABLE, trace)
    assert 1.5 < ratio <= 2
    alternating: list[Step] = [("a", 1), ("b", 1)] * 200
    eager = always_in_place(PORTABLE, alternating).seconds
    assert eager > 2 * always_corrected(PORTABLE, alternating)


@pytest.mark.parametrize(
    "pattern",
    [
        [("a", 1), ("b", 1)],
        [("a", 1), (None, 1)],
        [("a", 1), ("a", 1), ("b", 1), ("b", 1), ("b", 1)],
        [("a", 1), ("b", 1), ("c", 1), (None, 2)],
    ],
    ids=["two masks", "a mask and the base", "short bursts", "three and a mix"],
)
@pytest.mark.parametrize("costs", [PORTABLE, NATIVE, GPU], ids=["portable", "native", "gpu"])
def test_alternating_traffic_never_switches(costs, pattern):
    assert follow(costs, pattern * 500).switches == 0


def test_one_mask_returns_in_place_after_each_mixed_step():
    trace: list[Step] = ([("a", 8)] * 300 + [(None, 9)]) * 10
    bill = follow(GPU, trace)
    assert bill.switches == 10
    assert bill.seconds <= 0.1 * always_corrected(GPU, trace)


def test_a_long_prompt_switches_at_once():
    """Tokens count, not steps: corrections of 2,048 tokens cost more than a switch."""
    assert follow(GPU, [("a", 2048)]).switches == 1
    assert follow(GPU, [("a", 1)]).switches == 0


def test_reason_and_paid_fraction_of_each_step():
    policy = SwitchPolicy(PORTABLE, LAYERS)
    seen = []
    held = None
    for mask, tokens in [(None, 1), ("a", 1), ("a", 1), *[("a", 4)] * 5, (None, 3), ("a", 1)]:
        if mask is None:
            policy.end_run("mixed" if seen else "base")
            held = None
        else:
            held = mask if policy.run_in_place(mask, ZEROS[mask], tokens, held) else None
        seen.append((policy.reason, policy.paid))
    reasons = [r for r, _ in seen]
    assert reasons[:3] == ["base", "paying", "paying"]
    assert reasons[-2:] == ["mixed", "paying"]
    assert "in_place" in reasons
    shares = [p for r, p in seen[1:] if r == "paying"]
    assert 0 < shares[0] < shares[1] < 1
    assert shares[-1] == pytest.approx(shares[0]), "a new run pays from the start"


def test_a_mask_that_left_the_weights_pays_again():
    """A load of another mask needs the base; many cold masks must not cost a switch each."""
    policy = SwitchPolicy(PORTABLE, LAYERS)
    held = None
    while held is None:
        held = "a" if policy.run_in_place("a", ZEROS["a"], 1, None) else None
    assert policy.run_in_place("a", ZEROS["a"], 1, "a")
    assert not policy.run_in_place("a", ZEROS["a"], 1, None)
