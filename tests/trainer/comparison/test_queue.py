"""The queue of comparisons: its order, seeds, resumption and two processes at once."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import bmt_trainer.comparison.runner
import pytest
import yaml
from bmt_trainer.comparison import plan, provenance, queue, tables
from bmt_trainer.comparison.runner import locked
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError
from rich.console import Console

from tests.support.tiny_model import interrupt_after
from tests.support.training.display import quiet

ROOT = Path(__file__).resolve().parents[3]
RECIPE = {
    **{"trainer": "sft", "methods": "base, bmt", "dataset": "task:initials"},
    **{"heldout": 4, "steps": 4, "batch_size": 2, "checkpoint_every": 2, "device": "cpu"},
    **{"learning_rate": 0.01, "calibration_prompts": 4, "max_new_tokens": 4},
}


@pytest.fixture
def root(checkpoint, tmp_path):
    """A folder with a queue of one recipe with two seeds."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    entry = {"recipe": "recipe.yaml", "output": "out", "model": str(checkpoint), "seeds": [0, 1]}
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump([entry]))
    return tmp_path


def queued(root):
    return queue.read(root / "queue.yaml", root, quiet())


def test_each_call_takes_the_next_run_until_none_is_left(root, monkeypatch):
    taken = []
    while (cell := queue.run_next(queued(root), quiet())) is not None:
        taken.append((cell.method, cell.seed))
        assert cell.file.exists()
    assert taken == [("base", 0), ("bmt", 0), ("base", 1), ("bmt", 1)]
    results = tables.read([root / "out"])
    assert sorted(r["settings"]["seed"] for r in results) == [0, 0, 1, 1]
    rows = tables.rows(results)
    assert [(row.method, row.changes) for row in rows] == [
        ("base", ""),
        ("base", "seed 1"),
        ("bmt", ""),
        ("bmt", "seed 1"),
    ]
    # A mask is compared with the base on the same seed's held-out examples.
    assert all(row.against is not None for row in rows if row.method == "bmt")
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
        return {"method": cell.method}

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


def test_an_entry_without_its_data_is_left_out(root, monkeypatch):
    rows = root / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("")
    [entry] = yaml.safe_load((root / "queue.yaml").read_text())
    other = {**entry, "data": "SOME_DATA", "dataset": "gsm8k:rows.jsonl"}
    (root / "queue.yaml").write_text(yaml.safe_dump([other, entry]))
    monkeypatch.delenv("SOME_DATA", raising=False)
    shown = Display(Console(file=io.StringIO()))
    [left] = queue.read(root / "queue.yaml", root, shown)
    assert left.datasets == ["task:initials"]
    assert "set SOME_DATA" in shown.console.file.getvalue()
    monkeypatch.setenv("SOME_DATA", str(rows.parent))
    both = queued(root)
    assert both[0].datasets == [f"gsm8k:{rows}"]


@pytest.mark.parametrize("text", ["- recipe: r.yaml\n", "recipe: r\n", "[\n", "- 3\n"])
def test_bad_queues(tmp_path, text):
    (tmp_path / "queue.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"queue\.yaml"):
        queue.read(tmp_path / "queue.yaml", tmp_path, quiet())


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


def test_the_repositorys_queue_knows_the_results_that_are_kept(monkeypatch):
    monkeypatch.delenv("PAPER_DATA", raising=False)
    kept = (ROOT / "benchmarks" / "results" / "latest" / "paper").glob("*/*.json")
    [fingerprint] = {json.loads(path.read_text())["fingerprint"] for path in kept}
    # The model itself need not be there.
    monkeypatch.setattr(provenance, "of_model", lambda model: fingerprint)
    plans = queue.read(ROOT / "recipes" / "queue.yaml", ROOT, quiet())
    for made in plans:
        files = {cell.file for cell in made.cells()}
        assert set(made.output.glob("*.json")) <= files, made.output
        assert len(files) == 3 * len({cell.file for cell in made.cells() if not cell.seed})
