"""Preference pairs: forms of rows, rows that cannot be kept, splits, tokens."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.data.pairs import PairEncoder
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError

from tests.support.tiny_model import TEMPLATE, byte_tokenizer

USER = {"role": "user", "content": "Oslo?"}
GOOD = {"role": "assistant", "content": "Rain."}
SYSTEM = {"role": "system", "content": "Be brief."}
BAD = {"role": "assistant", "content": "Sun."}
BEFORE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
}


def pair(row):
    return example_of(row, "p.jsonl, line 3", "pair")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Oslo?", "chosen": "Rain.", "rejected": "Sun."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Oslo?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Rain.", "rejected": "Sun."},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Oslo?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        # The prompt in all three columns, and null where a table has no value.
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [{**USER, "name": None}, BAD]},
        # Columns of another form in the same row, as in some data sets.
        {
            "messages": [USER, GOOD],
            "prompt": "Oslo?",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
        },
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_forms_of_a_pair(row):
    example = pair(row)
    assert example.prompt == (USER,)
    assert (example.answer, example.rejected.text) == ("Rain.", "Sun.")
    assert example.columns == row
    assert example.learnt == ()


def test_earlier_turns_are_the_prompt_and_not_learnt():
    row = {"chosen": [*BEFORE, USER, GOOD], "rejected": [*BEFORE, USER, BAD]}
    example = pair(row)
    assert example.prompt == (*BEFORE, USER)
    assert example.learnt == ()
    made = PairEncoder(byte_tokenizer()).encode(example)
    assert byte_tokenizer().decode(made.columns["chosen_ids"]) == "Rain.<|im_end|>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected: missing"),
        ({"prompt": "a", "rejected": "b"}, "chosen: missing"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected: missing"),
        ({"chosen": "b", "rejected": "c"}, "prompt: missing"),
        ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "chosen: .*no prompt in common"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen: equal to rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": [{**GOOD, "content": "b"}]}, "chosen: equal"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected: expected text"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen: empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "\n"}, "rejected: empty"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected: expected text or a list"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": [{**BAD, "content": ""}]}, "rejected"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Rome?"}, BAD]}, "no prompt in"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER]}, "rejected: the last turn is of"),
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}, "chosen: the last turn is of"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD, USER, BAD]}, "rejected: answers other"),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            "rejected: answers other turns",
        ),
        (
            {"prompt": "Rome?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "prompt: is no turn of the user",
        ),
        (
            {
                "prompt": [{**USER, "content": "Rome?"}],
                "chosen": [USER, GOOD],
                "rejected": [USER, BAD],
            },
            "chosen: begins with a turn of the user",
        ),
        (
            {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "chosen: begins with a turn of the user",
        ),
        (
            {"prompt": [USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            "chosen: begins with a turn of the system",
        ),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "chosen"),
        ({"messages": [USER, GOOD]}, "chosen: missing"),
        ({"text": "a"}, "chosen: missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}, "images"),
    ],
)
def test_rows_that_cannot_be_kept_name_row_and_field(row, words):
    with pytest.raises(DataError, match=rf"^p\.jsonl, line 3: .*{words}"):
        pair(row)


def test_supervised_training_reads_a_prompt_that_is_repeated_once():
    example = example_of({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "r")
    assert example.prompt == (USER,)
    assert example.rejected is None


def test_calls_may_be_preferred():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    example = pair({"prompt": [USER], "chosen": [CALL], "rejected": [BAD], "tools": tools})
    assert example.reply["tool_calls"]
    assert example.rejected.reply is None
    example = pair({"prompt": [USER], "chosen": [GOOD], "rejected": [CALL], "tools": tools})
    assert example.reply is None
    assert example.rejected.reply["tool_calls"]


def test_held_out_pairs_are_split_by_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    made = [{"prompt": f"q{i % 5}", "chosen": "a", "rejected": f"b{i % 10}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    split = load(str(path), heldout=2, train=100, pairs=True)
    held, trained = ({e.key for e in part} for part in (split.heldout, split.train))
    assert (len(held), len(trained)) == (2, 3)
    assert not held & trained
    # Each pair comes twice: another rejected answer is another pair.
    assert (split.counts.prompts, split.counts.repeated) == (5, 10)


def test_other_sources_and_forms_have_no_pairs(tmp_path):
    with pytest.raises(DataError, match="task:initials has no rejected answers"):
        load("task:initials", heldout=0, train=1, pairs=True)
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(DataError, match="format=text takes prompt and completion"):
        load(f"{path}?format=text", heldout=0, train=1, pairs=True)
    path.write_text(json.dumps({"q": "a", "good": "b", "bad": "c"}))
    named = f"{path}?prompt=q&chosen=good&rejected=bad"
    (example,) = load(named, heldout=0, train=1, pairs=True).train
    assert example.rejected.text == "c"


def test_the_task_of_pairs():
    for example in load("task:word-order", heldout=0, train=40, pairs=True).train:
        words = example.messages[0]["content"].rsplit(": ", 1)[1].split(", ")
        assert example.answer.split(", ") == words[::-1]
        assert example.rejected.text != example.answer
        assert sorted(example.rejected.text.split(", ")) == sorted(words)
    # Before a list of one word is drawn, which a short run may not do.
    with pytest.raises(DataError, match=r"word-order.*least: 1;"):
        load("task:word-order?least=1&most=50", heldout=0, train=1, pairs=True)


def test_a_pair_s_tokens_are_those_of_supervised_training():
    tokenizer = byte_tokenizer()
    made = PairEncoder(tokenizer).encode(
        pair({"prompt": "Oslo?", "chosen": "Rain.", "rejected": "Sun."})
    )
    columns = made.columns
    assert columns["prompt_ids"] + columns["chosen_ids"] == made.chosen.input_ids
    assert columns["prompt_ids"] + columns["rejected_ids"] == made.rejected.input_ids
    assert tokenizer.decode(columns["chosen_ids"]) == "Rain.<|im_end|>"
    assert tokenizer.decode(columns["rejected_ids"]) == "Sun.<|im_end|>"
    assert made.length == len(made.chosen.input_ids)


def test_answers_that_the_model_reads_as_equal():
    """A template that trims contents makes one answer of two."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'] | trim")
    example = pair({"prompt": "a", "chosen": "b", "rejected": "b "})
    with pytest.raises(DataError, match=r"line 3: chosen: equal to rejected as the model"):
        PairEncoder(tokenizer).encode(example)
