"""Any byte that decides a result, changed: the run is computed again, and else never."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import bmt_trainer.comparison.runner
import pytest
from bmt_trainer import hub
from bmt_trainer.comparison import plan, provenance
from bmt_trainer.comparison.results import files
from bmt_trainer.comparison.runner import run
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig

from tests.support.training.comparisons import made_up
from tests.support.training.display import Lines, quiet

REWARD = "from near import SHARE\n\n\ndef f(completion, answer):\n    return SHARE + 0.00\n"
# Each input of a comparison: its file below the folder, and the setting that names it.
INPUTS = {
    "data/a.jsonl": "dataset",
    "data/more/b.jsonl": "dataset",
    "heldout/h.jsonl": "heldout_dataset",
    "heldout.jsonl": "heldout_dataset",
    "validation/v.jsonl": "validation_dataset",
    "validation.jsonl": "validation_dataset",
    "kept/k.jsonl": "retention",
    "kept.jsonl": "retention",
    "r.py": "reward",
    "near.py": "reward",
    "g.py": "retention_grader",
    "t.jinja": "chat_template",
    "sets/gsm8k/test.jsonl": "suites",
    "sets/simplerl_eval/aime24.jsonl": "suites",
    "model/config.json": "model",
    "model/generation_config.json": "model",
    "model/tokenizer.json": "model",
    "model/tokenizer_config.json": "model",
    "model/model.safetensors": "model",
}
SETTINGS = {
    "steps": (2, 3),
    "heldout": (1, 2),
    "learning_rate": (0.01, 0.02),
    "max_new_tokens": (4, 5),
    "eval_batch_size": (8, 9),
    "system": (None, "Be brief."),
    "reading": ("strict", "lenient"),
    "retention_examples": (2, 3),
    "suites_limit": (1, 2),
    "track_every": (1, 2),
    "seed": (0, 1),
}
ROW = {"prompt": "Say 3.", "completion": "3"}
TEXT = (json.dumps(ROW) + "\n") * 4


@pytest.fixture
def inputs(checkpoint, tmp_path):
    """A folder with every kind of input."""
    texts = {"r.py": REWARD, "near.py": "SHARE = 0.123\n", "t.jinja": "{{ messages }}"}
    texts["g.py"] = "def f(completion, answer):\n    return 0.12\n"
    shutil.copytree(checkpoint, tmp_path / "model")
    for name in INPUTS:
        if not (file := tmp_path / name).exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts.get(name, TEXT))
    return tmp_path


def planned(root, **changes):
    """A plan of all inputs; single files where a changed name says so."""
    return plan.read(
        None,
        {
            **{"trainer": "grpo", "methods": "base", "model": str(root / "model")},
            **{"dataset": str(root / "data"), "output": root / "out", "device": "cpu"},
            **{"heldout_dataset": f"{root}/heldout + {root}/heldout.jsonl", "steps": 2},
            **{"validation_dataset": f"{root}/validation + {root}/validation.jsonl"},
            **{
                "validation": 1,
                "reward": f"{root / 'r.py'}:f",
                "chat_template": str(root / "t.jinja"),
            },
            **{"retention": f"{root}/kept + {root}/kept.jsonl", "heldout": 1, "track_every": 1},
            **{"retention_grader": f"{root / 'g.py'}:f", "suites": "gsm8k,aime24"},
            **{"suites_data": root / "sets", "prompts_per_step": 2, "micro_batch": 2},
            **changes,
        },
    )


@pytest.fixture
def computed(inputs, monkeypatch):
    """A function that runs the comparison of the inputs, and returns the number of runs made."""
    made = []
    monkeypatch.setattr(
        bmt_trainer.comparison.runner, "run_cell", lambda cell, _: made.append(1) or made_up(cell)
    )

    def compute(display=None, **changes):
        made.clear()
        run(planned(inputs, **changes), display or quiet())
        return len(made)

    return compute


def flips(file: Path, draw: Random) -> list[int]:
    """Three bytes of which a bit may change while the file stays what it is."""
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return draw.sample(range(len(data) // 2, len(data)), 3)
    letters = file.suffix in (".json", ".jsonl", ".jinja")
    kind = bytes.isalpha if letters else bytes.isdigit
    return draw.sample([at for at in range(len(data)) if kind(data[at : at + 1])], 3)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.found
def test_every_setting_that_joins_names_is_known_to_name_data_or_rewards():
    """A new one would be in the name of a result as text alone."""
    joined = {
        field.name
        for config in (SftConfig, GrpoConfig, SdftConfig, DpoConfig, KtoConfig)
        for field in dataclasses.fields(config)
        if field.metadata.get("joined")
    }
    # A server decides nothing but who samples.
    assert joined == {"dataset", *provenance.DATASETS, "reward", "server"}


@pytest.mark.found
@pytest.mark.parametrize("name", INPUTS)
def test_any_byte_of_any_input_decides(inputs, computed, name):
    file = inputs / name
    assert computed() == 1
    assert computed() == 0
    for at in flips(file, Random(name)):
        flip(file, at)
        assert computed() == 1
        flip(file, at)
        assert computed() == 0


@pytest.mark.found
@pytest.mark.parametrize("name", SETTINGS)
def test_any_setting_decides(computed, name):
    first, second = SETTINGS[name]
    assert computed(**{name: first}) == 1
    assert computed(**{name: second}) == 1
    assert computed(**{name: first}) == 0


def test_a_file_more_or_less_or_moved_within_a_folder_decides(inputs, computed):
    assert computed() == 1
    (inputs / "data" / "c.jsonl").write_text(TEXT)
    assert computed() == 1
    (inputs / "data" / "c.jsonl").unlink()
    assert computed() == 0
    # The same names and bytes in other folders: `?split=` may mean others.
    (inputs / "data" / "more").rename(inputs / "data" / "test")
    assert computed() == 1


def test_neither_places_nor_files_that_decide_nothing_count(inputs, computed):
    assert computed() == 1
    (inputs / "model" / "README.md").write_text("words")
    (inputs / "sets" / "amc23.jsonl").write_text(TEXT)
    (inputs / "unused.py").write_text("")
    assert computed() == 0
    shutil.move(inputs / "data", inputs / "elsewhere" / "data")
    assert computed(dataset=str(inputs / "elsewhere" / "data")) == 0


@pytest.mark.found
def test_a_commit_of_the_hub_decides(inputs, computed, monkeypatch):
    commits = Counter()
    asked = []

    def commit(name, kind, revision=None):
        asked.append((name, kind, revision))
        return f"{name} {commits[name]}"

    monkeypatch.setattr(hub, "commit", commit)
    monkeypatch.setattr(bmt_trainer.comparison.provenance, "of_model", lambda model: model)
    changes = {"dataset": "org/rows?config=a", "model": "org/base"}
    changes |= {"heldout_dataset": "gsm8k:org/questions?revision=v1", "suites_data": None}
    assert computed(**changes) == 1
    assert computed(**changes) == 0
    assert ("org/questions", "dataset", "v1") in asked
    assert ("org/base", "model", None) in asked
    assert ("openai/gsm8k", "dataset", None) in asked
    for name in ("org/rows", "org/base", "org/questions", "openai/gsm8k"):
        commits[name] += 1
        assert computed(**changes) == 1, name
        assert computed(**changes) == 0


@pytest.mark.found
def test_bytes_behind_a_url_decide(inputs, computed):
    import fsspec

    system = fsspec.filesystem("memory")
    for text in (TEXT, TEXT + "\n", TEXT):
        with system.open("/cmp/rows.jsonl", "wb") as stream:
            stream.write(text.encode())
        made = computed(dataset="memory://cmp/rows.jsonl")
        assert made == (0 if (inputs / "seen").exists() and text == TEXT else 1)
        (inputs / "seen").touch()


def test_commits_are_those_of_the_cache_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda: "no network")
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--org--rows" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    assert hub.commit("org/rows", "dataset") == "abc"
    assert hub.commit("org/rows", "dataset", "v1") == "v1"
    assert hub.commit("org/other", "model") == ""
    assert hub.commit("not a name", "model") == ""


@pytest.mark.found
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: text.replace('"right": "01"', '"right": "11"'), "checksum"),
        (lambda text: text.replace('"size_bytes": 0,', ""), "has no size_bytes"),
        (lambda text: text.replace('"trainer": "grpo",', ""), "has no trainer"),
        (lambda text: text.replace('"format": 2', '"format": 3'), "newer build"),
        (lambda text: "[]", "not a result"),
        (lambda text: "", "cannot be read"),
    ],
)
def test_a_damaged_result_is_computed_again(inputs, computed, damage, words):
    assert computed() == 1
    [file] = (inputs / "out").glob("*.json")
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    display = Lines()
    assert computed(display) == 1
    assert words in display.text
    assert file.read_text() == text


@pytest.mark.found
def test_results_that_were_there_are_counted_with_what_made_them(inputs, computed, monkeypatch):
    monkeypatch.setattr(
        bmt_trainer.comparison.runner,
        "run_cell",
        lambda cell, _: {**made_up(cell), "versions": {"torch": "0.1"}},
    )
    run(planned(inputs), quiet())
    display = Lines()
    run(planned(inputs), display)
    assert "1 of 1 results were there before" in display.text
    assert "1 of them made with torch 0.1; here it is" in display.text
    assert "earlier build" not in display.text


def test_an_analysis_that_failed_is_said_again(inputs, computed, monkeypatch):
    failed = {"failed": {"geometry": "OSError: no room"}}
    monkeypatch.setattr(
        bmt_trainer.comparison.runner, "run_cell", lambda cell, _: {**made_up(cell), **failed}
    )
    run(planned(inputs), quiet())
    display = Lines()
    run(planned(inputs), display)
    assert "has no geometry, which failed (OSError: no room)" in display.text


@pytest.mark.found
@pytest.mark.parametrize("reward", ["number", "number + words"])
def test_results_of_graders_that_have_changed_are_said(inputs, computed, monkeypatch, reward):
    monkeypatch.setattr(
        bmt_trainer.comparison.runner,
        "run_cell",
        lambda cell, _: {
            **made_up(cell),
            **{"settings": {"reward": reward}, "contents": {"reward": "of other code"}},
        },
    )
    run(planned(inputs, reward=reward), quiet())
    display = Lines()
    run(planned(inputs, reward=reward), display)
    assert "1 of them by graders whose code has changed since" in display.text


@pytest.mark.found
def test_a_default_that_another_build_had_decides(inputs, computed, monkeypatch):
    """Settings that are given are compared by the key: of files by their bytes, not their paths."""

    def made(cell, _):
        settings = {"steps": 9, "clip": 0.125, "chat_template": "/elsewhere/t.jinja"}
        return {**made_up(cell), "settings": settings}

    assert computed() == 1
    assert computed(clip=0.3) == 1
    for changes in ({}, {"clip": 0.3}):
        for cell in planned(inputs, **changes).cells():
            files.write(cell.file, {**made(cell, None), "key": json.loads(cell.key)})
    assert computed(clip=0.3) == 0
    display = Lines()
    assert computed(display) == 1
    assert "was made with clip 0.125, where the default is" in display.text
    assert computed() == 0


def test_a_result_of_an_earlier_build_is_taken_with_a_line(inputs, computed):
    [cell] = planned(inputs).cells()
    cell.earlier.parent.mkdir()
    cell.earlier.write_text(json.dumps(made_up(cell)))
    display = Lines()
    assert computed(display) == 0
    assert "1 of them of an earlier build" in display.text
    # What that build knew is compared as it did.
    flip(inputs / "data" / "a.jsonl", 3)
    assert computed() == 1
