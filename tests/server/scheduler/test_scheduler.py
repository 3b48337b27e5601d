"""Scheduler of mode `scatter` with vLLM's real queues, KV blocks and requests; no engine."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import pytest
from bmt_server.scheduler.request_queue import MaskQueue, mask_of
from bmt_server.scheduler.scheduler import ExclusiveAsyncScheduler, ExclusiveScheduler
from bmt_server.vllm_integration.engine_flags import for_mode
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from tests.support.schedulers import answer, build, masks_in, request, sampled, settings


@pytest.fixture
def make(smol, monkeypatch) -> Iterator:
    """make(max_wait_s=…, quantum_s=…, **build's): a scheduler under those settings."""

    def one(max_wait_s: float = 1.0, quantum_s: float = 0.05, **options) -> Scheduler:
        monkeypatch.setenv("BMT_SERVER_SETTINGS", settings(max_wait_s, quantum_s).to_json())
        return build(smol, **options)

    return one


def cost(tokens: int) -> float:
    return 0.016 + 0.0008 * tokens


def step(scheduler, finished: list[str] | None = None) -> set[int]:
    """Run one step and advance the clock by its cost. Returns the masks in it."""
    output = scheduler.schedule()
    if finished is not None:
        finished += sorted(output.finished_req_ids)
    masks = masks_in(scheduler, output)
    scheduler.clock.now += cost(output.total_num_scheduled_tokens) if masks else 0.001
    answer(scheduler, output)
    return masks


@pytest.mark.parametrize("kind", [ExclusiveScheduler, ExclusiveAsyncScheduler])
@pytest.mark.parametrize("seed", range(6))
def test_no_step_mixes_and_every_request_gets_its_tokens(make, kind, seed):
    """Random traffic, too few KV blocks and slots, prompts longer than a step's budget."""
    rng = random.Random(seed)
    scheduler = make(kind=kind, slots=6, blocks=26, budget=48, max_wait_s=0.3)
    ahead = 2 if kind is ExclusiveAsyncScheduler else 1
    requests = [
        request(
            f"r{i}", rng.randrange(5), prompt=rng.randrange(1, 120), tokens=rng.randrange(1, 60)
        )
        for i in range(40)
    ]
    to_come, finished, in_flight, steps = requests[::-1], [], deque(), 0
    aborted: set[str] = set()
    while to_come or scheduler.has_requests():
        for _ in range(rng.randrange(3)):
            if to_come:
                scheduler.add_request(to_come.pop())
        if rng.random() < 0.02 and scheduler.requests:
            victim = rng.choice(sorted(scheduler.requests))
            aborted |= {
                r.request_id
                for r in scheduler.finish_requests(victim, RequestStatus.FINISHED_ABORTED)
            }
        output = scheduler.schedule()
        finished += output.finished_req_ids
        assert len(masks_in(scheduler, output)) <= 1
        assert len(scheduler.running) <= 6
        scheduler.clock.now += cost(output.total_num_scheduled_tokens)
        in_flight.append((output, sampled(scheduler, output)))
        while len(in_flight) >= ahead:
            scheduler.update_from_output(*in_flight.popleft())
        steps += 1
        assert steps < 5000, "no progress"
    assert scheduler.turn_stats.turn_seconds <= scheduler.clock.now - 100 + 1e-6
    assert any(r.num_preemptions for r in requests), "the test must be short of blocks"
    for r in requests:
        if r.request_id not in aborted:
            assert r.num_output_tokens == r.max_tokens, r.request_id
    assert sorted(finished) == sorted(r.request_id for r in requests), (
        "workers must receive every finished request"
    )
    assert scheduler.kv_cache_manager.usage == 0
    assert not scheduler._arrived


@pytest.mark.parametrize(
    ("asynchronous", "kind"), [(False, ExclusiveScheduler), (True, ExclusiveAsyncScheduler)]
)
def test_one_option_names_the_scheduler_for_both_ways_of_scheduling(make, asynchronous, kind):
    flags = for_mode("scatter", {"theirs": 1})
    assert flags["additional_config"] == {"theirs": 1, "bmt_mask_mode": "scatter"}
    assert type(make(kind=flags["scheduler_cls"], asynchronous=asynchronous)) is kind
    assert "scheduler_cls" not in for_mode("auto", None)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_with_one_mask_it_decides_as_vllms_own(make, policy):
    rng = random.Random(0)
    wanted = [
        (f"r{i}", rng.randrange(1, 100), rng.randrange(1, 9), rng.randrange(3)) for i in range(30)
    ]
    decided = []
    for kind in (Scheduler, ExclusiveScheduler):
        scheduler = make(kind=kind, slots=6, blocks=30, budget=48, policy=policy)
        to_come, steps = wanted[::-1], []
        while to_come or scheduler.has_requests():
            if to_come:
                name, prompt, tokens, priority = to_come.pop()
                made = request(name, 3, prompt, tokens, priority)
                made.arrival_time = float(len(wanted) - len(to_come))
                scheduler.add_request(made)
            output = scheduler.schedule()
            steps.append(output.num_scheduled_tokens)
            answer(scheduler, output)
        decided.append(steps)
    assert decided[0] == decided[1]


@pytest.mark.parametrize(("bound", "masks"), [(1.0, 6), (0.4, 6), (0.05, 10)])
def test_no_request_waits_beyond_the_guarantee(make, bound, masks):
    """Every request's own waits, measured by the test, under an endless busy mask."""
    rng = random.Random(1)
    scheduler = make(slots=256, max_wait_s=bound)
    since: dict[str, float] = {}
    longest, guarantee, count = 0.0, bound, 0
    for _ in range(600):
        arrivals = [0] if rng.random() < 0.4 else []
        arrivals += [m for m in range(1, masks) if rng.random() < 0.02]
        for mask in arrivals:
            count += 1
            made = request(f"r{count}", mask, prompt=rng.randrange(1, 20), tokens=12)
            scheduler.add_request(made)
            since[made.request_id] = scheduler.clock.now
        if not scheduler.has_requests():
            continue
        began = scheduler.clock.now
        output = scheduler.schedule()
        guarantee = max(guarantee, scheduler.turn_stats.guarantee_s)
        for name in output.num_scheduled_tokens:
            longest = max(longest, began - since[name])
            since[name] = began
        scheduler.clock.now += cost(output.total_num_scheduled_tokens)
        answer(scheduler, output)
    assert scheduler.turn_stats.turns > masks
    assert bound / 2 < longest <= guarantee
    assert scheduler.turn_stats.longest_wait_s <= guarantee
    if bound == 1.0:
        assert guarantee == 1.0
        assert scheduler.turn_stats.waits_over_bound == 0


def test_a_busy_mask_leaves_slots_to_others(make):
    scheduler = make(slots=4, max_wait_s=0.5)
    for i in range(4):
        scheduler.add_request(request(f"busy{i}", 1, tokens=6))
    step(scheduler)
    scheduler.add_request(request("other", 2))
    count, masks = 4, set()
    while masks != {2}:
        scheduler.add_request(request(f"busy{count}", 1, tokens=6))
        count += 1
        masks = step(scheduler)
        assert count < 200, "no slot for the other mask"
    rest = 7 * cost(12)  # until one of the slots is free
    assert scheduler.clock.now - 100 < 0.5 + rest + 0.5


def test_requests_of_the_mask_in_turn_are_admitted_at_once(make):
    scheduler = make(quantum_s=10.0)
    scheduler.add_request(request("a", 1, tokens=50))
    step(scheduler)
    scheduler.add_request(request("b", 2))
    scheduler.add_request(request("c", 1))
    output = scheduler.schedule()
    assert output.num_scheduled_tokens == {"a": 1, "c": 10}


def test_hidden_requests_keep_their_blocks_and_no_mask_preempts_another(make):
    """Mask 1 holds all blocks except one; mask 2 is not admitted until mask 1 has finished."""
    scheduler = make(blocks=8, quantum_s=0.0, max_wait_s=0.01)
    holder = request("holder", 1, prompt=90, tokens=6)
    scheduler.add_request(holder)
    step(scheduler)
    blocks = scheduler.kv_cache_manager.get_block_ids("holder")
    scheduler.add_request(request("large", 2, prompt=40))
    seen = []
    while "holder" in scheduler.requests:
        assert scheduler.kv_cache_manager.get_block_ids("holder") == blocks
        seen.append(step(scheduler))
    assert holder.num_preemptions == 0
    assert seen.count({1}) == 5
    assert set() in seen, "mask 2 was tried, and the step was empty"
    finished: list[str] = []
    while scheduler.has_requests():
        step(scheduler, finished)
    assert finished == ["holder", "large"]


def test_an_empty_step_still_reports_finished_requests(make):
    """Otherwise these requests would stay in the workers' memory forever."""
    scheduler = make(blocks=8, quantum_s=0.0, max_wait_s=0.01)
    scheduler.add_request(request("short", 3, tokens=1))
    scheduler.add_request(request("holder", 1, prompt=90, tokens=8))
    scheduler.add_request(request("large", 2, prompt=40))
    finished: list[list[str]] = []
    while scheduler.has_requests():
        part: list[str] = []
        step(scheduler, part)
        finished.append(part)
    assert sorted(name for part in finished for name in part) == ["holder", "large", "short"]


def test_priorities_hold_within_a_mask(make):
    scheduler = make(slots=1, policy="priority")
    scheduler.add_request(request("low", 1, priority=5))
    scheduler.add_request(request("high", 1, priority=0))
    output = scheduler.schedule()
    assert set(output.num_scheduled_tokens) == {"high"}


def test_a_pause_for_new_requests_does_not_stop_running_ones(make):
    scheduler = make()
    scheduler.add_request(request("a", 1, tokens=4))
    step(scheduler)
    scheduler.add_request(request("b", 2))
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    assert [step(scheduler) for _ in range(3)] == [{1}] * 3
    scheduler.set_pause_state(PauseState.UNPAUSED)
    assert {2} in [step(scheduler) for _ in range(2)]


def test_a_request_that_waits_for_its_grammar_causes_no_empty_steps(make):
    scheduler = make(quantum_s=0.0, max_wait_s=0.01)
    scheduler.add_request(request("a", 1, tokens=8))
    later = request("b", 2)
    later.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    scheduler.add_request(later)
    assert [step(scheduler) for _ in range(4)] == [{1}] * 4
    later.status = RequestStatus.WAITING
    assert {2} in [step(scheduler) for _ in range(2)]


def test_a_session_that_waits_for_input_keeps_its_blocks_and_resumes(make):
    """Also if an overdue request of another mask lacks the blocks that the session holds."""
    scheduler = make(blocks=10, slots=3, quantum_s=0.0, max_wait_s=0.01)
    scheduler.add_request(request("session", 1, prompt=70, tokens=2, resumable=True))
    while step(scheduler):
        pass
    assert scheduler.kv_cache_manager.get_block_ids("session")[0]
    scheduler.add_request(request("large", 2, prompt=100))
    scheduler.clock.now += 1
    assert not any(step(scheduler) for _ in range(5)), "no blocks for it, no input for the session"
    scheduler.add_request(request("session", 1, prompt=5, tokens=3, resumable=True))
    assert {1} in [step(scheduler) for _ in range(3)]
    scheduler.finish_requests("session", RequestStatus.FINISHED_ABORTED)
    assert {2} in [step(scheduler) for _ in range(3)]


def test_a_session_that_waits_for_input_holds_one_slot_only(make):
    scheduler = make(slots=2)
    scheduler.add_request(request("session", 1, tokens=2, resumable=True))
    while step(scheduler):
        pass
    for name in ("b", "c"):
        scheduler.add_request(request(name, 2))
    assert set(scheduler.schedule().num_scheduled_tokens) == {"b"}


def test_a_wait_counts_from_the_arrival(make):
    scheduler = make()
    scheduler.add_request(request("a", 1, tokens=8))
    step(scheduler)
    output = scheduler.schedule()
    scheduler.add_request(request("b", 2))
    scheduler.clock.now += 0.7  # a long step
    answer(scheduler, output)
    while step(scheduler) != {2}:
        pass
    assert scheduler.turn_stats.longest_wait_s >= 0.7


def test_stats_count_turns_and_waits(make):
    scheduler = make(quantum_s=0.0, max_wait_s=0.05)
    for mask in range(3):
        scheduler.add_request(request(f"r{mask}", mask, tokens=5))
    while scheduler.has_unfinished_requests():
        step(scheduler)
    stats = scheduler.turn_stats
    assert stats.turn_steps == 15
    assert 3 <= stats.turns <= 15
    assert sum(stats.waits) == stats.turns
    assert stats.longest_wait_s > 0.02
    assert stats.turn_seconds == pytest.approx(3 * cost(10) + 12 * cost(1))


def test_it_does_not_run_without_settings(smol, monkeypatch):
    monkeypatch.delenv("BMT_SERVER_SETTINGS", raising=False)
    with pytest.raises(RuntimeError, match="settings"):
        build(smol)


def test_the_queue_shows_one_mask_and_loses_nothing():
    queue = MaskQueue(SchedulingPolicy.FCFS)
    made = [request(f"r{i}", i % 3) for i in range(9)]
    for r in made:
        queue.add_request(r)
    queue.only = 1
    assert [r.request_id for r in queue] == ["r1", "r4", "r7"]
    assert len(queue) == 3
    assert queue.peek_request() is made[1]
    assert queue.pop_request() is made[1]
    queue.prepend_requests(deque([made[1]]))
    queue.only = 5
    assert not queue
    with pytest.raises(IndexError):
        queue.pop_request()
    queue.only = None
    assert len(queue) == 9
    queue.remove_requests(made[3:])
    queue.remove_request(made[2])
    assert {mask_of(r) for r in queue} == {0, 1}
    assert queue.masks().keys() == {0, 1}
