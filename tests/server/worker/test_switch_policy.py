"""The rule of mode `auto` under a cost model: never twice the best choice, and no thrashing."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from bmt_server.worker.switch_policy import GPU, NATIVE, PORTABLE, Costs, SwitchRule
from hypothesis import given, settings
from hypothesis import strategies as st

# A step: the mask that owns it (None where it is mixed or the base's) and its tokens.
Step = tuple[str | None, int]
LAYERS = 30
ZEROS = {"a": 50_000, "b": 50_000, "c": 5_000, "d": 400_000}


@dataclass
class Bill:
    """What a way of serving a trace costs: corrections and switches, a way back with each."""

    seconds: float = 0.0
    switches: int = 0


def follow(costs: Costs, trace: list[Step]) -> Bill:
    """The rule, with the way back charged when a mask goes in."""
    rule, held, bill = SwitchRule(costs, LAYERS), None, Bill()
    for mask, tokens in trace:
        if mask is None:
            rule.shared("mixed")
            held = None
        elif rule.owned(mask, ZEROS[mask], tokens, held):
            if held != mask:
                bill.seconds += 2 * costs.switch(LAYERS, ZEROS[mask])
                bill.switches += 1
            held = mask
        else:
            bill.seconds += costs.correction(LAYERS, ZEROS[mask], tokens)
            held = None
    return bill


def always_corrected(costs: Costs, trace: list[Step]) -> float:
    return sum(costs.correction(LAYERS, ZEROS[m], t) for m, t in trace if m)


def always_in_place(costs: Costs, trace: list[Step]) -> Bill:
    bill, held = Bill(), None
    for mask, _ in trace:
        if mask and mask != held:
            bill.seconds += 2 * costs.switch(LAYERS, ZEROS[mask])
            bill.switches += 1
        held = mask
    return bill


def hindsight(costs: Costs, trace: list[Step]) -> float:
    """The cheaper of both, run by run."""
    total = 0.0
    for mask, run in itertools.groupby(trace, key=lambda step: step[0]):
        if mask:
            price = 2 * costs.switch(LAYERS, ZEROS[mask])
            total += min(price, always_corrected(costs, list(run)))
    return total


costs_drawn = st.builds(
    Costs,
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
def test_never_twice_the_cost_of_the_better_fixed_choice_nor_of_hindsight(costs, seed, stay, most):
    """Random traces from alternating every step to runs of hundreds."""
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


def test_the_bound_is_tight_and_going_in_at_once_would_break_it():
    """The worst case of the rule: each run ends just as its switch is paid."""
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


def test_one_mask_with_a_stray_request_goes_back_in_place_after_each():
    trace: list[Step] = ([("a", 8)] * 300 + [(None, 9)]) * 10
    bill = follow(GPU, trace)
    assert bill.switches == 10
    assert bill.seconds <= 0.1 * always_corrected(GPU, trace)


def test_a_long_prompt_pays_for_its_switch_at_once():
    """Tokens count, not steps: correcting 2,048 of them costs more than a switch."""
    assert follow(GPU, [("a", 2048)]).switches == 1
    assert follow(GPU, [("a", 1)]).switches == 0


def test_what_is_told_while_it_waits():
    rule = SwitchRule(PORTABLE, LAYERS)
    told = []
    held = None
    for mask, tokens in [(None, 1), ("a", 1), ("a", 1), *[("a", 4)] * 5, (None, 3), ("a", 1)]:
        if mask is None:
            rule.shared("mixed" if told else "base")
            held = None
        else:
            held = mask if rule.owned(mask, ZEROS[mask], tokens, held) else None
        told.append((rule.reason, rule.paid))
    reasons = [r for r, _ in told]
    assert reasons[:3] == ["base", "paying", "paying"]
    assert reasons[-2:] == ["mixed", "paying"]
    assert "in_place" in reasons
    shares = [p for r, p in told[1:] if r == "paying"]
    assert 0 < shares[0] < shares[1] < 1
    assert shares[-1] == pytest.approx(shares[0]), "a new run pays from the start"


def test_a_mask_taken_out_meanwhile_pays_anew():
    """Loading another mask needs the base; many cold masks must not cost a switch each."""
    rule = SwitchRule(PORTABLE, LAYERS)
    held = None
    while held is None:
        held = "a" if rule.owned("a", ZEROS["a"], 1, None) else None
    assert rule.owned("a", ZEROS["a"], 1, "a")
    assert not rule.owned("a", ZEROS["a"], 1, None)
