"""Rounds of slices: who works when, and which slices a ratio is of."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.processes.engine import Ran, Work
from benchmarks.suites import engine_speed
from benchmarks.suites.matchups import AGAIN, DECODE, MASKS, PREFILL, Contest

WORKS = {
    DECODE: Work(sequences=2, prompt_tokens=4, new_tokens=4),
    PREFILL: Work(sequences=1, prompt_tokens=8, new_tokens=1),
}
CONTESTS = [
    Contest("again", AGAIN, DECODE, (None,), ""),
    Contest("idle", MASKS, DECODE, (None,), ""),
    Contest("single", MASKS, DECODE, (0,), ""),
    Contest("prefill", MASKS, PREFILL, (0,), ""),
]


def rounds(monkeypatch, count, pair=0):
    """The slices by engine, kind, adapter and seed, with None for each rest, and the samples."""
    made, clock = [], iter(range(10_000))

    def engine(name):
        def run(work, seed):
            kind = DECODE if work == WORKS[DECODE] or work.new_tokens == 4 else PREFILL
            made.append((name, kind, work.adapters[0], seed))
            return Ran(float(next(clock)), 1.0)

        return SimpleNamespace(run=run)

    monkeypatch.setattr(engine_speed, "rest", lambda: made.append(None))
    running = {name: engine(name) for name in ("bare", AGAIN, MASKS)}
    return made, engine_speed._rounds(count, CONTESTS, running, WORKS, pair)


def test_a_round_has_each_workload_once_and_a_rest_between_engines(monkeypatch):
    made, samples = rounds(monkeypatch, 1)
    slices = [one for one in made if one is not None]
    assert sorted((name, kind, adapter is None) for name, kind, adapter, _ in slices) == sorted(
        [
            ("bare", DECODE, True),
            ("bare", PREFILL, True),
            (AGAIN, DECODE, True),
            (MASKS, DECODE, True),
            (MASKS, DECODE, False),
            (MASKS, PREFILL, False),
        ]
    )
    assert made.count(None) == 3
    # No two slices have the same prompts: a prefix cache would answer the second one.
    assert len({seed for *_, seed in slices}) == len(slices)
    # The bare engine's slice of a kind is the baseline of all contests of that kind.
    assert samples["again"]["bare"] == samples["idle"]["bare"] == samples["single"]["bare"]
    assert samples["prefill"]["bare"] != samples["idle"]["bare"]


def test_each_comes_first_and_last_in_some_round_and_prefill_in_a_third(monkeypatch):
    made, samples = rounds(monkeypatch, 12)
    assert {name: len(of["other"]) for name, of in samples.items()} == {
        "again": 12,
        "idle": 12,
        "single": 12,
        "prefill": 4,
    }
    by_round, engines = [], []
    for one in made:
        if one is None:
            engines.append([])
        else:
            engines[-1].append(one[0])
    for at in range(0, len(engines), 3):
        by_round.append([of[0] for of in engines[at : at + 3]])
    assert {of[0] for of in by_round} == {of[-1] for of in by_round} == {"bare", AGAIN, MASKS}
    assert all(set(of) == {"bare", AGAIN, MASKS} for of in by_round)
