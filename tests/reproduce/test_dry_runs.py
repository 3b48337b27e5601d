"""Each row of each comparison, a step of it, on tiny models of the same architectures."""

from __future__ import annotations

import io
import json

import pytest
from bmt_trainer.comparison import tables
from bmt_trainer.console import Display
from rich.console import Console

from reproduce import __main__ as driver
from reproduce import catalog, dry_run, tiny
from reproduce.catalog import Comparison
from tests.support.training.display import quiet

# Their methods, forms and measurements are those of other entries, on the other architecture.
LONG = ("table2-qwen", "table6", "figure3-qwen", "small-tasks-grpo", "small-tasks-sdft")
COMPARISONS = [
    pytest.param(e, id=e.name, marks=[pytest.mark.operate] if e.name in LONG else [])
    for e in catalog.entries()
    if isinstance(e, Comparison)
]


@pytest.mark.parametrize("entry", COMPARISONS)
def test_each_row_runs_on_its_architecture(entry, tmp_path):
    outcomes = list(dry_run.rows(entry, tmp_path, quiet()))
    assert [(label, error) for label, error in outcomes if error] == []
    plan = entry.plan({})
    found = tables.read([tmp_path / "results"])
    assert len(found) == len(outcomes)
    assert {r["method"] for r in found} == set(plan.methods)
    assert {r["model"] for r in found} == {tiny.family(model) for model in plan.models}
    for name, values in plan.sweep.items():
        assert {r["changes"][name] for r in found if r["changes"]} == set(values)
    for result in found:
        assert (result["score"] is None) == (plan.suites is not None)
        assert len(result.get("suites", [])) == (6 if plan.suites else 0)
        trained = result["method"] not in ("base", "wanda")
        assert ("geometry" in result) == (trained and plan.geometry)
        assert ("track" in result) == (trained and plan.track_every > 0)
        if trained and not plan.track_every:
            assert len(result["logs"]["loss"]) == 1


def test_a_row_that_fails_is_shown_and_the_others_run(monkeypatch):
    tried = []

    def fail(cell, display):
        tried.append(cell.method)
        if cell.method == "full":
            raise RuntimeError("no such layer")

    monkeypatch.setattr(dry_run, "run_and_keep", fail)
    shown = Console(file=io.StringIO(), width=200)
    assert driver.main(["table4", "--dry-run"], Display(shown)) == 1
    assert tried == ["base", "full", "bmt"]
    text = shown.file.getvalue()
    assert "table4 base: ok" in text
    assert "table4 bmt: ok" in text
    assert "table4 full: Traceback" in text
    assert "no such layer" in text


def test_tiny_data_reads_as_its_form(tmp_path):
    [name] = [tiny.dataset("bbeh:data/bbeh/bbeh_x.json", tmp_path)]
    assert json.loads((tmp_path / "bbeh.json").read_text())["examples"]
    assert name == f"bbeh:{tmp_path / 'bbeh.json'}"
    assert tiny.dataset("task:initials", tmp_path) == "task:initials"
