"""Answers with labels: forms of rows, rows that cannot be kept, splits, tokens."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.data.labeled import LabelEncoder
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError

from tests.support.tiny_model import byte_tokenizer

USER = {"role": "user", "content": "Oslo?"}
GOOD = {"role": "assistant", "content": "Rain."}
BAD = {"role": "assistant", "content": "Sun."}


def labeled(row):
    return example_of(row, "k.jsonl, line 3", "label")


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("true", "false"),
        ("True", "False"),
        ("1", "0"),
        (" TRUE ", "FALSE "),
    ],
)
def test_labels_as_json_tables_and_csv_write_them(value, other):
    row = {"prompt": "Oslo?", "completion": "Rain.", "label": value}
    assert labeled(row).wanted is True
    assert labeled({**row, "label": other}).wanted is False


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Oslo?", "completion": "Rain."},
        {"prompt": [USER], "completion": [GOOD]},
        {"prompt": "Oslo?", "completion": [GOOD]},
        {"prompt": [USER], "completion": "Rain.", "chosen": None},
    ],
)
def test_forms_of_a_labeled_answer(row):
    example = labeled({**row, "label": False})
    assert (example.prompt, example.answer, example.wanted) == ((USER,), "Rain.", False)
    [made] = LabelEncoder(byte_tokenizer()).encode(example)
    assert byte_tokenizer().decode(made.columns["completion_ids"]) == "Rain.<|im_end|>"
    assert made.columns["label"] is False


def test_a_pair_is_encoded_as_two_answers():
    example = labeled({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    good, bad = LabelEncoder(byte_tokenizer()).encode(example)
    assert (good.wanted, bad.wanted) == (True, False)
    assert good.columns["prompt_ids"] == bad.columns["prompt_ids"]
    assert byte_tokenizer().decode(bad.columns["completion_ids"]) == "Sun.<|im_end|>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b"}, "label: missing"),
        ({"prompt": "a", "completion": "b", "label": None}, "label: missing"),
        ({"prompt": "a", "label": True}, "completion: missing"),
        ({"completion": "b", "label": True}, "prompt: missing"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label: 2 is neither true nor false"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, r"label: 0\.5 is neither"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label: 'good' is neither"),
        ({"prompt": "a", "completion": "b", "label": [True]}, "label: .*neither"),
        ({"prompt": "a", "completion": " ", "label": True}, "completion: empty"),
        ({"prompt": [GOOD], "completion": "b", "label": True}, "prompt: ends with the assistant"),
        (
            {"prompt": [USER], "completion": [USER, GOOD], "label": True},
            "completion: begins with a turn of the user",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "label": True}, "chosen: the row is an"),
        ({"prompt": "a", "chosen": "b"}, "rejected: missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen: equal to rejected"),
        ({"text": "a", "label": True}, "prompt: missing"),
    ],
)
def test_rows_that_cannot_be_kept_name_row_and_field(row, words):
    with pytest.raises(DataError, match=rf"^k\.jsonl, line 3: .*{words}"):
        labeled(row)


@pytest.mark.parametrize("stream", [False, True])
def test_both_labels_of_a_held_out_prompt_are_held_out(tmp_path, stream):
    """The last row alone would be the unwanted one of each prompt."""
    path = tmp_path / "k.jsonl"
    made = [{"prompt": f"q{n // 3}", "completion": f"{n}", "label": n % 3 != 2} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    name = f"{path}?streaming=true" if stream else str(path)
    split = load(name, heldout=3, train=100, labels=True)
    assert [e.wanted for e in split.heldout].count(True) == 3
    assert [e.wanted for e in split.heldout].count(False) == 3
    held = {e.key for e in split.heldout}
    assert len(held) == 3
    assert held.isdisjoint(e.key for e in split.train)
    assert len(split.train) == 15
    assert split.counts.dropped["other answers of held-out prompts"] == 3
    assert split.counts.rows == sum(map(len, (split.train, split.heldout))) + 3


def test_a_column_of_another_name_may_be_the_label(tmp_path):
    path = tmp_path / "k.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a", "liked": True}) + "\n")
    [example] = load(f"{path}?label=liked", heldout=0, train=1, labels=True).train
    assert example.wanted is True


@pytest.mark.found
@pytest.mark.parametrize("value", [False, "false", "False"])
def test_supervised_training_learns_no_answer_that_is_not_wanted(value):
    with pytest.raises(DataError, match=r"line 1: label: false.*kto"):
        example_of({"prompt": "a", "completion": "b", "label": value}, "x, line 1")
    # A class of other data, of which nothing says that it is a label of this kind.
    assert example_of({"prompt": "a", "completion": "b", "label": 0}, "x, line 1").answer == "b"


@pytest.mark.found
def test_supervised_training_refuses_a_prompt_that_the_chats_contradict():
    """Its text would be read by nothing."""
    row = {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    with pytest.raises(DataError, match=r"^x, line 1: prompt: is no turn of the user in chosen"):
        example_of(row, "x, line 1")
    assert example_of({**row, "prompt": "Oslo?"}, "x, line 1").prompt == (USER,)
    assert example_of({**row, "prompt": None}, "x, line 1").prompt == (USER,)
