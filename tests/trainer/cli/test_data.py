"""`bmt-train data`: rows token by token, counts, and nothing of the weights."""

from __future__ import annotations

import json

import pytest
from bmt_trainer import models
from bmt_trainer.cli import main
from typer.testing import CliRunner

ROWS = [
    {
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": "Sun."},
        ]
    },
    {"prompt": "Bern?", "completion": "Snow."},
    {"prompt": "Bern?", "completion": "Fog."},
    {"prompt": "x" * 400, "completion": "y"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models, "load_model", loaded)


def run(*arguments):
    return CliRunner().invoke(main.app, ["data", *map(str, arguments)])


def counts(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_rows_and_counts(checkpoint, file):
    done = run(file, "--model", checkpoint, "--max-length", 300)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("row 1 (")).count("line 1)") == 1
    assert "⟦R│a│i│n│.│<|im_end|>⟧" in done.stdout
    assert "⟦S│u│n│.│<|im_end|>⟧" in done.stdout
    table = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines if "  " in line}
    assert table["rows read"] == "4"
    assert table["different prompts"] == "3"
    assert table["training rows"] == "3"
    assert table["learnt turns"] == "4"
    assert table["left out"].startswith("1, longer than max_length, 300 tokens")
    assert "\x1b" not in done.stdout


def test_json(checkpoint, file):
    made = counts(file, "--model", checkpoint, "--max-length", 300, "--rows", 1)
    found = made["counts"]
    assert (found["rows"], found["prompts"], found["training_rows"]) == (4, 3, 3)
    assert (found["overlong"], found["truncated"], found["refused"]) == (1, 0, [])
    assert found["end_of_turn"] == "<|im_end|>"
    [row] = made["rows"]
    learnt = [piece["text"] for piece in row["pieces"] if piece["learnt"]]
    assert learnt == ["Rain.<|im_end|>", "Sun.<|im_end|>"]
    assert sum(piece["tokens"] for piece in row["pieces"]) == len(row["input_ids"])
    tokens = found["tokens"]
    assert tokens["learnt"]["total"] == 6 + 5 + 6 + 5
    assert (tokens["learnt"]["least"], tokens["learnt"]["most"]) == (5, 11)


def test_the_choices_of_a_run(checkpoint, file):
    common = (file, "--model", checkpoint, "--max-length", 300)
    assert counts(*common, "--learn", "last")["counts"]["learnt_turns"] == 3
    cut = counts(*common, "--overlong", "truncate-left")["counts"]
    assert (cut["training_rows"], cut["truncated"]) == (4, 1)
    packed = counts(*common, "--packing")["counts"]
    assert packed["packed_sequences"] < packed["training_rows"]
    prompts = counts(*common, "--method", "grpo")
    assert prompts["counts"]["learnt_turns"] == 0
    assert prompts["rows"][0]["pieces"][-1]["text"].endswith("assistant\n")
    failed = run(*common, "--overlong", "error")
    assert failed.exit_code == 1
    assert "line 4" in str(failed.exception)


def test_every_row_that_cannot_be_kept_is_counted_and_fails(checkpoint, tmp_path):
    path = tmp_path / "b.jsonl"
    good = {"prompt": "a", "completion": "b"}
    path.write_text("".join(json.dumps(r) + "\n" for r in [good, *[{"prompt": "only"}] * 7]))
    done = run(path, "--model", checkpoint)
    assert done.exit_code == 1
    assert "line 2" in done.stderr
    assert "2 more rows" in done.stderr
    assert "⟦b│<|im_end|>⟧" in done.stdout


def test_a_generated_task(checkpoint):
    made = counts("task:initials", "--model", checkpoint, "--examples", 20, "--rows", 2)
    assert made["counts"]["training_rows"] == 20
    assert len(made["rows"]) == 2


@pytest.mark.found
@pytest.mark.parametrize("name", ["enable_thinking", "padding", "self"])
def test_a_rows_argument_that_the_template_does_not_read_is_an_error(tmp_path, checkpoint, name):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**ROWS[0], "chat_template_kwargs": {name: True}}))
    done = run(path, "--model", checkpoint)
    assert done.exit_code == 1
    assert f"line 1: chat_template_kwargs: the chat template does not read {name}" in str(
        done.exception
    )


def test_pairs_are_two_rows_each(checkpoint, tmp_path):
    path = tmp_path / "p.jsonl"
    made = [
        {"prompt": "Bern?", "chosen": "Snow.", "rejected": "Fog."},
        {"prompt": "Rome?", "chosen": "Sun.", "rejected": "y" * 400},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    command = (path, "--model", checkpoint, "--method", "dpo", "--max-length", 200)
    shown = counts(*command)
    assert [row["location"].rpartition(", ")[2] for row in shown["rows"]] == ["chosen", "rejected"]
    learnt = [row["pieces"][-1]["text"] for row in shown["rows"]]
    assert learnt == ["Snow.<|im_end|>", "Fog.<|im_end|>"]
    assert (shown["counts"]["training_rows"], shown["counts"]["overlong"]) == (2, 1)
    assert "chosen): " in run(*command).stdout
    for option in (("--packing",), ("--learn", "last"), ("--overlong", "error")):
        done = run(*command, *option)
        assert done.exit_code != 0
        assert option[0][2:] in str(done.exception)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    assert "line 3: chosen: equal to rejected" in str(run(*command).exception)


def test_labeled_answers_and_pairs_are_rows_of_kto(checkpoint, tmp_path):
    path = tmp_path / "k.jsonl"
    made = [
        {"prompt": "Bern?", "completion": "Snow.", "label": False},
        {"prompt": "Oslo?", "chosen": "Rain.", "rejected": "Fog."},
        # The rejected answer is too long: the pair is left out whole.
        {"prompt": "Rome?", "chosen": "Sun.", "rejected": "y" * 400},
        {"prompt": "Riga?", "completion": "y" * 400, "label": True},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    command = (path, "--model", checkpoint, "--method", "kto", "--max-length", 200)
    shown = counts(*command)
    labels = [row["location"].rpartition(", ")[2] for row in shown["rows"]]
    assert labels == ["unwanted", "wanted", "unwanted"]
    assert [row["pieces"][-1]["text"] for row in shown["rows"]] == [
        *("Snow.<|im_end|>", "Rain.<|im_end|>", "Fog.<|im_end|>")
    ]
    assert (shown["counts"]["training_rows"], shown["counts"]["overlong"]) == (3, 2)
    assert "packing: is for sft; kto" in str(run(*command, "--packing").exception)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert "line 5: label: missing" in str(run(*command).exception)
