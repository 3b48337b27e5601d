"""Options in data sets' names: text, converted by the taker's type."""

from __future__ import annotations

import datetime
import json
from typing import Literal

import pytest
from bmt_trainer.data.names import convert, parse_name, split_names
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError


@pytest.mark.found
@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "null", "~", "true", "1.0", "007", "1e3", "2024-01-01", "12:30:45"]
    + ["0x10", "1_000", "[a]", "{}", "a b", " x ", "train[:50%]", "train+test", "c++", "a=b", ""],
)
def test_values_are_taken_literally(text):
    assert parse_name(f"org/name?config={text}&split=test") == (
        "org/name",
        {"config": text, "split": "test"},
    )


def test_escapes_are_for_what_has_a_meaning():
    assert parse_name("x?a=%26&b=%3D%20%2B%20&c=100%25") == (
        "x",
        {"a": "&", "b": "= + ", "c": "100%"},
    )


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x?config=a&config=b", "config is given twice, as 'a' and 'b'"),
        ("x?config=a&config=a", "config is given twice"),
        ("x?config", "key=value"),
        ("x?", "key=value"),
        ("x?=a", "key=value"),
        ("x?a=1&", "key=value"),
    ],
)
def test_options_that_cannot_be_read(name, says):
    with pytest.raises(DataError, match=says):
        parse_name(name)


def test_names_of_mixtures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_names("a.jsonl?weight=3 + b+c.csv?split=x+y +  task:d") == [
        *("a.jsonl?weight=3", "b+c.csv?split=x+y", "task:d")
    ]
    (tmp_path / "a + b.jsonl").write_text("")
    assert split_names("a + b.jsonl?limit=1") == ["a + b.jsonl?limit=1"]
    (tmp_path / "a.jsonl").write_text("")
    assert split_names("a.jsonl?limit=1 + c") == ["a.jsonl?limit=1", "c"]
    for wrong in ("a + ", " + a", "a +  + b"):
        with pytest.raises(DataError, match="name is missing"):
            split_names(wrong)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("no", str, "no"),
        ("1.0", str, "1.0"),
        ("12", int, 12),
        ("-3", int, -3),
        ("5e-4", float, 5e-4),
        ("true", bool, True),
        ("false", bool, False),
        ("null", int | None, None),
        ("3", int | None, 3),
        ("null", str | None, "null"),
        ("on", Literal["on", "off"], "on"),
        ("+,-", list[str], ["+", "-"]),
        ("[+,-]", list[str], ["+", "-"]),
        ('["a,b", "c"]', list[str], ["a,b", "c"]),
        ("1,2", tuple[int, int], (1, 2)),
        ("1,x", tuple[int, str], (1, "x")),
        ("0.5,1", list[float], [0.5, 1.0]),
        ("2024-01-01", datetime.date, datetime.date(2024, 1, 1)),
    ],
)
def test_conversion_by_type(text, hint, value):
    found = convert("x", text, hint)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *(("yes", bool), ("on", bool), ("True", bool), ("1", bool), ("", bool)),
        *(("1.5", int), ("1_0", int), ("on", int), ("", int), (" 1", int), ("null", int)),
        *(("x", float), ("yes", Literal["on", "off"]), ("1,x", list[int])),
    ],
)
def test_a_value_of_another_type_is_an_error(text, hint):
    with pytest.raises(DataError, match="here: "):
        convert("here", text, hint)


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("task:arithmetic?instruction=no", "instruction: 'no' is not true or false"),
        ("task:arithmetic?most=many", "most: 'many' is not an integer"),
        ("task:initials?colour=red", "does not take colour; it takes least, most"),
        ("reasoning-gym:letter_counting?max_words=on", "max_words: 'on' is not an integer"),
        ("reasoning-gym:letter_counting?colour=red", "it takes min_words, max_words"),
        ("reasoning-gym:letter_counting?seed=3", "does not take seed"),
        ("task:initials?streaming=true", "does not take streaming"),
        ("x.jsonl?colour=red", "does not take colour; it takes .*limit.*prompt, completion"),
        ("x.jsonl?streaming=yes", "streaming: 'yes' is not true or false"),
        ("x.jsonl?limit=0", "limit: 0 is below 1"),
        ("x.jsonl?weight=-1", "weight: -1.0 is below 0"),
        ("x.jsonl?weight=0", "leave the source out"),
        ("x.jsonl?weight=nan", "weight"),
        ("x.jsonl?weight=inf", "weight"),
        ("x.jsonl?buffer=9", "buffer is for"),
        ("x.jsonl?format=chat", "format: 'chat' is not one of auto, text"),
        ("org/name?prefix=x", "does not take prefix; it takes config, split, revision"),
        ("gsm8k:x.jsonl?limit=1&prompt=q", "does not take prompt; it takes config"),
    ],
)
def test_options_of_sources(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(DataError, match=says):
        load(name, heldout=0, train=1)


def test_options_reach_their_takers():
    def texts(name):
        examples = load(name, heldout=5, train=0).heldout
        return [e.messages[0]["content"] for e in examples]

    assert all("ascending" in t for t in texts("task:sort-numbers?order=ascending"))
    assert all(t.count(",") == 2 for t in texts("task:sort-numbers?least=3&most=3"))
    assert all(" " in t for t in texts("reasoning-gym:letter_counting?min_words=3&max_words=3"))
    both = [texts(f"reasoning-gym:basic_arithmetic?operators={o}") for o in ("+", "[+]")]
    assert both[0] == both[1]
    assert not any("*" in t for t in both[0])
