"""Servers in turns: which load goes to whom, with which masks, and which loads a ratio is of."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.harness.profiles import QUICK
from benchmarks.processes.load import Measured
from benchmarks.suites.http import turns
from benchmarks.suites.http.turns import BARE, COMPOSITIONS, FIRST, LORA, MASKS


def made(rounds, speed):
    """Loads that were asked for, and the rounds' results, with servers of a known speed."""
    asked = []

    def run(server, names, *, requests, tokens, concurrency, seed):
        asked.append((server.name, len(names or []), requests, concurrency, seed))
        return Measured(speed(server.name, len(names or [])), 1.0, 10.0, 20.0, 5.0)

    servers = {
        name: SimpleNamespace(name=name, main_cpu_seconds=lambda: 0.0)
        for name in (BARE, MASKS, LORA)
    }
    context = SimpleNamespace(scale=QUICK, say=lambda text: None, command="make bench-serve")
    names = {name: [f"{i}" for i in range(32)] for name in servers}
    one = turns._Turns(context, SimpleNamespace(run=run), servers, names)
    return context, asked, [one.round(i, 32, turns._of_round(i)) for i in range(rounds)]


def speeds(name, adapters):
    return {BARE: 100.0, MASKS: 100.0 - adapters, LORA: 50.0}[name]


def test_each_composition_once_a_round_and_peers_in_a_fifth():
    _, asked, rounds = made(10, speeds)
    assert [FIRST.id in r for r in rounds] == [True] * 10
    for composition in COMPOSITIONS:
        count = sum(composition.id in r for r in rounds)
        assert count == (2 if composition.peer else 10), composition.id
    assert {(name, n) for name, n, *_ in asked} == {
        *((BARE, 0), (MASKS, 0), (MASKS, 1), (MASKS, 32), (LORA, 1), (LORA, 32))
    }


def test_no_server_sees_the_same_prompts_twice_in_a_composition():
    _, asked, _ = made(10, speeds)
    bare = [seed for name, *_, seed in asked if name == BARE]
    assert len(set(bare)) == len(bare)


def test_ratios_are_over_the_bare_servers_load_of_the_same_round():
    context, _, rounds = made(6, speeds)
    raw = {"rounds": rounds, "at_once": {"8": rounds[:2]}, "contention": 0.0}
    found = turns._findings(context, raw)
    value = {e.id: e.value for e in found.entries}
    assert value == {
        "base_over_base_http": 1.0,
        "idle_over_base_http": 1.0,
        "single_over_base_http": 0.99,
        "mixed32_over_base_http": 0.68,
        "lora_r1_single_over_base_http": 0.5,
        "lora_r1_mixed32_over_base_http": 0.5,
    }
    assert all(len(row) == len(found.tables[0].header) for row in found.tables[0].rows)
