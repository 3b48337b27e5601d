"""The driver's command: the list, states, what is missing, and the next run."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from bmt_trainer.console import Display
from rich.console import Console

from benchmarks.harness import environment
from reproduce import __main__ as driver
from reproduce import catalog, status
from tests.support.tiny_model import interrupt_after

HEAD = {"about": "Tiny", "hardware": {"note": "anywhere"}}
TINY = {
    **{"trainer": "sft", "methods": ["base", "bmt"], "dataset": "task:initials"},
    **{"heldout": 4, "steps": 4, "batch_size": 2, "checkpoint_every": 2, "device": "cpu"},
    **{"learning_rate": 0.01, "calibration_prompts": 4, "max_new_tokens": 4},
}
ROWS = {"name": "rows", "source": "here", "license": "MIT", "path": "rows.jsonl", "only": "small-b"}


@pytest.fixture
def call(checkpoint, tmp_path, monkeypatch):
    """Run the driver on two small comparisons, of which the second needs data, and on a run."""
    shared = {**TINY, "model": str(checkpoint), "seeds": [0]}
    parts = {
        "small-a": {"about": "first", "output": str(tmp_path / "a")},
        "small-b": {
            **{"about": "second", "output": str(tmp_path / "b")},
            **{"dataset": "gsm8k:data/rows.jsonl", "methods": ["base"]},
        },
    }
    texts = {
        "small": {**HEAD, "data": [ROWS], "shared": shared, "comparisons": parts},
        "runs": {
            **{**HEAD, "data": []},
            "runs": {"one": {"about": "a run", "run": "sft:lean", "figures": ["f", "g"]}},
        },
    }
    for name, values in texts.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    known = catalog.entries(tmp_path, list(texts))
    monkeypatch.setattr(catalog, "entries", lambda: known)
    monkeypatch.setattr(driver, "demo_model", lambda: checkpoint)
    monkeypatch.setattr(status, "LATEST", tmp_path / "latest")
    monkeypatch.setattr(driver.comparisons, "keep", lambda figures: None)
    monkeypatch.delenv("PAPER_DATA", raising=False)

    def one(*arguments):
        shown = Console(file=io.StringIO(), width=300)
        code = driver.main(["--data", str(tmp_path / "data"), *arguments], Display(shown))
        return code, shown.file.getvalue()

    return one


def test_the_list_has_states_and_what_is_missing(call, tmp_path):
    code, text = call()
    assert code == 0
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert "not run: 0 of 2 runs. first" in lines["small-a"]
    assert "not run: 0 of 1 runs. second" in lines["small-b"]
    assert "not run: 0 of 2 figures. a run" in lines["one"]
    assert f"{tmp_path}/data/rows.jsonl: rows, from here, license MIT" in lines["missing:"]
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "paper.json").write_text(json.dumps([{"id": "g"}, {"id": "other"}]))
    assert "unfinished: 1 of 2 figures" in call()[1]


def test_the_next_run_until_none_is_left(call, tmp_path, capsys):
    for method in ("base", "bmt"):
        assert "| base |" not in capsys.readouterr().out
        code, text = call("--next")
        assert code == 0
        assert f".{method}." in text.rpartition("kept ")[2]
        assert "small-b is left out: missing" in text
    assert len(list((tmp_path / "a").glob("*.json"))) == 2
    # The last run of a comparison ends with its table.
    assert "| base |" in capsys.readouterr().out
    code, text = call("--next")
    assert (code, "nothing left to run" in text) == (0, True)
    assert "done: 2 runs. first" in call()[1]


def test_means_over_the_seeds_that_are_there_say_their_number(call, monkeypatch):
    kept = []
    monkeypatch.setattr(driver.comparisons, "keep", kept.append)
    monkeypatch.setattr(driver.comparisons, "_OVER_SEEDS", {"small-a": "a"})
    for _ in range(4):
        assert call("small-a", "--next", "--seeds", "0,1,2")[0] == 0
    # Base and masks of one seed, then of a second one; a third is left.
    assert [[figure.id for figure in figures] for figures in kept[:2]] == [[], []]
    *_, last = kept
    assert {figure.id: figure.seeds for figure in last} == {
        "a_base_over_seeds": (0, 1),
        "a_bmt_over_seeds": (0, 1),
        "a_bmt_zeros_over_seeds": (0, 1),
        "a_bmt_gain_points_over_seeds": (0, 1),
    }
    assert {figure.n for figure in last} == {2}


def test_an_interrupted_run_of_a_name_is_resumed(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            call("small-a")
    assert "unfinished: 1 of 2 runs" in call()[1]
    code, text = call("small-a")
    assert code == 0
    assert "resum" in text
    assert len(list((tmp_path / "a").glob("*.json"))) == 2


def test_what_lacks_its_data_is_an_error_and_the_rest_runs(call, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        driver.runner, "run", lambda plan, display: asked.append(plan.output.name) or []
    )
    monkeypatch.setattr(driver, "_kept", lambda *given: None)
    code, text = call("small")
    assert (code, asked) == (1, ["a"])
    assert "small-b is left out: missing" in text
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}")
    assert call("small")[0] == 0
    assert asked == ["a", "a", "b"]


def test_seeds_and_folder_of_the_command(call, tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(driver.runner, "run", lambda plan, display: plans.append(plan) or [])
    monkeypatch.setattr(driver, "_kept", lambda *given: None)
    assert call("small-a", "--seeds", "3,4", "--output", str(tmp_path / "else"))[0] == 0
    assert [cell.seed for cell in plans[0].cells()] == [3, 3, 4, 4]
    assert plans[0].output == tmp_path / "else"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing is named 'nothing'"),
        (["small-a", "--seeds", "a"], "write integers"),
        (["small-a", "--seeds", "-1"], "seeds"),
        (["one", "--seeds", "0"], "takes neither"),
        (["small-a", "--seeds", "1", "--dry-run"], "neither --seeds nor"),
        (["one", "--next"], "none of them can run"),
        (["--dry-run"], "need a name"),
        (["--seeds", "0"], "need a name"),
    ],
)
def test_errors_are_one_line(call, arguments, words, capsys):
    assert call(*arguments)[0] == 1
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


def test_a_demo_model_that_cannot_be_made_is_one_line(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(driver, "demo_model", environment.demo_model)
    assert call("small-a")[0] == 1
    text = capsys.readouterr().err
    assert "the demo's model cannot be made: " in text
    assert text.count("\n") == 1


def test_a_run_that_is_done_is_repeated_by_its_own_name_alone(call, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(catalog.Run, "load", lambda self: lambda: called.append(self.name))
    assert call("one")[0] == 0
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "paper.json").write_text(json.dumps([{"id": "f"}, {"id": "g"}]))
    known = catalog.entries()
    monkeypatch.setattr(catalog, "select", lambda *given: [known[-1], known[-1]])
    code, text = call("one")
    assert (code, called) == (0, ["one"])
    assert "one is done" in text
    monkeypatch.setattr(catalog, "select", lambda *given: [known[-1]])
    assert call("one")[0] == 0
    assert called == ["one", "one"]
