"""Claims of the paper's recipes on their GPU, which follow from the trainer's estimate."""

from __future__ import annotations

import pytest

from reproduce import catalog, memory
from reproduce.catalog import Comparison

ENTRIES = {e.name: e for e in catalog.entries() if isinstance(e, Comparison) and e.hardware.gpus}


def test_shapes_are_those_of_every_model_of_a_recipe_with_a_gpu():
    assert ENTRIES
    assert {m for entry in ENTRIES.values() for m in entry.plan({}).models} <= set(memory.SHAPES)
    # Parameters, as the models' cards have them.
    outline = memory._outline("Qwen/Qwen2.5-7B")
    assert sum(p.numel() for p in outline.parameters()) == 7_615_616_512


@pytest.mark.parametrize("name", ["table3-mmlu-pro", "table4"])
def test_a_recipe_says_which_of_its_runs_do_not_fit(name):
    entry = ENTRIES[name]
    plan, room = entry.plan({}), entry.hardware.gpu_gb * 10**9
    most, *beyond = memory.lines(plan, entry.hardware)
    assert most.startswith("memory of full of ")
    uses = memory.uses(plan, entry.hardware)
    found = {(u.method, u.model): u.estimate.peak for u in uses}
    assert set(found) == {(m, model) for m in ("full", "bmt") for model in plan.models}
    too_large = [str(u) for u in uses if u.estimate.peak > room]
    assert len(too_large) == 1
    assert beyond == [
        f"does not fit one GPU of {entry.hardware.gpu_gb} GB ({memory.gib(room)}), 1 of "
        f"{len(found)} methods and models: {too_large[0]}"
    ]
    # A mask of each model does.
    assert all(peak < room for (method, _), peak in found.items() if method == "bmt")


@pytest.mark.parametrize("name", ["table5", "table6"])
def test_rollouts_are_in_the_pieces_that_the_trainer_takes(name):
    """All completions of a step at once would take 174 and 610 GiB."""
    entry = ENTRIES[name]
    plan, room = entry.plan({}), entry.hardware.gpu_gb * 10**9
    [use] = memory.uses(plan, entry.hardware)
    assert use.estimate.peak < room
    [most] = memory.lines(plan, entry.hardware)
    assert " + rollouts " in most
