"""The queue of comparisons: its order, seeds, resumption and two processes at once."""

from __future__ import annotations

import json
import threading

import bmt_trainer.comparison.runner
import pytest
import yaml
from bmt_trainer.comparison import plan, queue, tables
from bmt_trainer.comparison.runner import locked
from bmt_trainer.errors import ConfigError

from tests.support.tiny_model import interrupt_after
from tests.support.training.comparisons import made_up
from tests.support.training.display import quiet

RECIPE = {
    **{"trainer": "sft", "methods": "base, bmt", "dataset": "task:initials"},
    **{"heldout": 4, "steps": 4, "batch_size": 2, "checkpoint_every": 2, "device": "cpu"},
    **{"learning_rate": 0.01, "calibration_prompts": 4, "max_new_tokens": 4},
}


@pytest.fixture
def root(checkpoint, tmp_path):
    """A folder with a recipe of two seeds."""
    recipe = {**RECIPE, "output": str(tmp_path / "out"), "model": str(checkpoint), "seeds": [0, 1]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def queued(root):
    return [plan.read(root / "recipe.yaml", {})]


def test_each_call_takes_the_next_run_until_none_is_left(root, monkeypatch):
    taken = []
    while (cell := queue.run_next(queued(root), quiet())) is not None:
        taken.append((cell.method, cell.seed))
        assert cell.file.exists()
    assert taken == [("base", 0), ("bmt", 0), ("base", 1), ("bmt", 1)]
    results = tables.read([root / "out"])
    assert sorted(r["settings"]["seed"] for r in results) == [0, 0, 1, 1]
    rows = tables.rows(results)
    assert [(row.method, row.changes, sorted(row.by_seed)) for row in rows] == [
        ("base", "", [0, 1]),
        ("bmt", "", [0, 1]),
    ]
    # A mask is compared with the base on the same seed's held-out examples.
    assert rows[1].against.runs == 2
    assert len({r["digest"] for r in results if r["method"] == "bmt"}) == 2


def test_an_interrupted_run_is_resumed(root, monkeypatch):
    assert queue.run_next(queued(root), quiet()).method == "base"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            queue.run_next(queued(root), quiet())
    [folder] = (root / "out").glob("*.run")
    assert (folder / "checkpoint-2").exists()
    cell = queue.run_next(queued(root), quiet())
    assert (cell.method, cell.seed) == ("bmt", 0)
    assert not folder.exists()
    assert len(json.loads(cell.file.read_text())["logs"]["loss"]) == 4


def test_processes_take_different_runs(root, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def run_cell(cell, display):
        if threading.current_thread() is other:
            started.set()
            assert go_on.wait(30)
        return made_up(cell)

    taken = []
    monkeypatch.setattr(bmt_trainer.comparison.runner, "run_cell", run_cell)
    other = threading.Thread(target=lambda: taken.append(queue.run_next(queued(root), quiet())))
    other.start()
    assert started.wait(30)
    here = [queue.run_next(queued(root), quiet()) for _ in range(4)]
    go_on.set()
    other.join(30)
    assert [(c.method, c.seed) for c in taken] == [("base", 0)]
    # The other one's work is left to it.
    assert [c and (c.method, c.seed) for c in here] == [("bmt", 0), ("base", 1), ("bmt", 1), None]
    assert queue.run_next(queued(root), quiet()) is None


def test_a_lock_ends_with_its_process(root):
    file = root / "out" / "result.json"
    with locked(file, wait=False) as ours, locked(file, wait=False) as again:
        assert (ours, again) == (True, False)
    assert (file.parent / ".locks" / "result").exists()  # the file stays, the lock does not
    with locked(file, wait=False) as ours:
        assert ours


def test_seeds_and_keys(checkpoint, tmp_path):
    """A result without a seed in its key is seed 0's, and a setting is the same as a list of it."""

    def files(**changes):
        recipe = {**RECIPE, "methods": "bmt", "model": str(checkpoint), "output": tmp_path}
        return [cell.file.name for cell in plan.read(None, {**recipe, **changes}).cells()]

    [plain] = files()
    zero, one, two = files(seeds=[0, 1, 2])
    assert plain == zero
    assert len({zero, one, two}) == 3
    assert [one] == files(seed=1)
    assert files(seeds=[1, 1]) == [one]
    for changes in ({"seeds": 1}, {"seeds": [-1]}, {"seeds": ["a"]}, {"seeds": [1], "seed": 1}):
        with pytest.raises(ConfigError, match="seed"):
            files(**changes)
