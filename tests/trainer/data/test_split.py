"""The split by prompt, its counts, mixtures with weights, and streams."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from random import Random

import pytest
from bmt_trainer.data import rows, split
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError
from hypothesis import given
from hypothesis import strategies as st


def write(path, pairs):
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(examples):
    return [e.messages[-1]["content"] for e in examples]


def answers(examples):
    return [e.answer for e in examples]


@pytest.mark.found
def test_rows_with_equal_prompts_are_all_kept(tmp_path):
    path = write(tmp_path / "x.jsonl", [(f"q{i % 3}", f"a{i}") for i in range(24)])
    made = load(path, heldout=0, train=10**6)
    assert sorted(answers(made.train)) == sorted(f"a{i}" for i in range(24))
    assert (made.counts.rows, made.counts.prompts, made.counts.repeated) == (24, 3, 0)
    assert made.lines()[0].startswith("data: 24 rows, 3 different prompts")
    made = load(path, heldout=1, train=10**6)
    [held] = made.heldout
    assert len(made.train) == 16
    assert asked([held])[0] not in asked(made.train)
    assert sum(made.counts.dropped.values()) == 7
    assert "7 left out: other answers of held-out prompts" in made.lines()[0]
    # Fewer rows than there are: first one of each prompt.
    assert len(set(asked(load(path, heldout=1, train=2).train))) == 2


def test_equal_rows_are_kept_and_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", [("a", "b"), ("a", "b"), ("a", "c"), ("d", "e")])
    made = load(path, heldout=0, train=9)
    assert sorted(answers(made.train)) == ["b", "b", "c", "e"]
    assert (made.counts.rows, made.counts.prompts, made.counts.repeated) == (4, 2, 1)


PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=30)


@given(pairs=PAIRS, heldout=st.integers(0, 6), train=st.integers(0, 40), seed=st.integers(0, 9))
def test_every_row_goes_somewhere(pairs, heldout, train, seed):
    examples = [Example(chat(str(q)), str(a)) for q, a in pairs]
    prompts = len({q for q, _ in pairs})
    options = {"heldout": heldout, "train": train, "seed": seed, "share": None, "name": "x"}
    if prompts < heldout + (train > 0):
        with pytest.raises(DataError, match=f"{prompts} different prompts"):
            split.of_list(examples, **options)
        return
    made = split.of_list(examples, **options)
    assert len(made.heldout) == heldout == len({e.key for e in made.heldout})
    assert not {e.key for e in made.heldout} & {e.key for e in made.train}
    assert len(made.train) <= train
    left = sum(made.counts.dropped.values())
    assert len(made.train) + len(made.heldout) + left == made.counts.rows == len(pairs)
    have = Counter((e.key, e.answer) for e in examples)
    assert not Counter((e.key, e.answer) for e in made.train + made.heldout) - have
    assert split.of_list(examples, **options) == made


@given(number=st.integers(2, 40), seed=st.integers(0, 5), heldout=st.integers(0, 1))
def test_different_prompts_are_split_as_ever(number, seed, heldout):
    """The order that recorded results were made with: a plain shuffle."""
    examples = [Example(chat(str(i)), "a") for i in range(number)]
    made = split.of_list(examples, heldout=heldout, train=10**6, seed=seed, share=None, name="x")
    shuffled = list(examples)
    Random(seed).shuffle(shuffled)
    assert made.heldout + made.train == shuffled


def test_shares_of_prompts(tmp_path):
    path = write(tmp_path / "x.jsonl", [(f"q{i % 8}", f"a{i}") for i in range(24)])
    made = load(path, heldout=99, train=10**6, share=0.25)
    assert (len(made.heldout), len(made.train)) == (2, 18)


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (1, 9), (0.5, 0.25)])
def test_weights_are_shares_of_the_training_rows(tmp_path, weights):
    first = write(tmp_path / "a.jsonl", [(f"a{i}", "a") for i in range(100)])
    second = write(tmp_path / "b.jsonl", [(f"b{i}", "b") for i in range(100)])
    name = f"{first}?weight={weights[0]} + {second}?weight={weights[1]}"
    made = load(name, heldout=8, train=60)
    count = Counter(answers(made.train))
    assert count["a"] / 60 == pytest.approx(weights[0] / sum(weights), abs=1 / 60)
    assert len(made.train) == 60
    assert len(made.heldout) == 8
    assert not set(asked(made.heldout)) & set(asked(made.train))
    assert max(Counter(asked(made.train)).values()) == 1
    assert load(name, heldout=8, train=60) == made
    assert load(name, heldout=8, train=60, seed=1) != made
    # Mixed, not one after the other.
    assert len([k for k, _ in itertools.groupby(answers(made.train))]) > 4


@pytest.mark.found
def test_rows_of_a_small_source_repeat_and_it_is_said(tmp_path):
    first = write(tmp_path / "a.jsonl", [(f"a{i}", "a") for i in range(10)])
    second = write(tmp_path / "b.jsonl", [(f"b{i}", "b") for i in range(90)])
    made = load(f"{first}?weight=1 + {second}?weight=1", heldout=0, train=80)
    assert Counter(answers(made.train)) == {"a": 40, "b": 40}
    assert set(Counter(q for q in asked(made.train) if q[0] == "a").values()) == {4}
    assert any("10 rows" in line and "4 times" in line for line in made.lines())
    # No more rows than there are, unless a source has no end.
    assert len(load(f"{first}?weight=1 + {second}?weight=1", heldout=0, train=999).train) == 100
    endless = load(f"{first}?weight=1 + task:initials?weight=3", heldout=4, train=200)
    assert len(endless.train) == 200
    assert len(endless.heldout) == 4
    assert sum(q[0] == "a" and q[1:].isdigit() for q in asked(endless.train)) == 50


@pytest.mark.found
def test_without_weights_all_rows_are_taken(tmp_path):
    first = write(tmp_path / "a.jsonl", [(f"a{i}", "a") for i in range(5)])
    second = write(tmp_path / "b.jsonl", [("a0", "other"), ("b0", "b"), ("b1", "b")])
    made = load(f"{first} + {second}", heldout=0, train=99)
    assert Counter(answers(made.train)) == {"a": 5, "b": 2, "other": 1}
    assert (made.counts.rows, made.counts.prompts) == (8, 7)
    limited = load(f"{first}?limit=2 + task:initials?limit=3", heldout=0, train=99)
    assert len(limited.train) == 5
    # A prompt of two sources is in one part only.
    for seed in range(8):
        made = load(f"{first} + {second}", heldout=4, train=99, seed=seed)
        assert not set(asked(made.heldout)) & set(asked(made.train))
        made = load(f"{first}?weight=1 + {second}?weight=1", heldout=2, train=9, seed=seed)
        assert not set(asked(made.heldout)) & set(asked(made.train))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{a} + {a}?weight=1", "has no weight"),
        ("task:initials + {a}", "no end that is known"),
        ("{a}?streaming=true + {a}", "no end that is known"),
        ("{a}?weight=1 + {b}?weight=1", "no such file"),
    ],
)
def test_mixtures_that_cannot_be_made(tmp_path, name, says):
    first = write(tmp_path / "a.jsonl", [("q", "a"), ("r", "b")])
    with pytest.raises(DataError, match=says):
        load(name.format(a=first, b=tmp_path / "b.jsonl"), heldout=0, train=9)


@given(total=st.integers(0, 1000), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_parts_add_up(total, weights):
    parts = split.apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1


@pytest.mark.found
def test_a_stream_is_read_only_as_far_as_the_run_needs(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl", [(f"q{i}", f"a{i}") for i in range(500)])
    read = []
    real = rows.text_formats.json_lines

    def counted(lines, name):
        for row in real(lines, name):
            read.append(row)
            yield row

    monkeypatch.setattr(rows.text_formats, "json_lines", counted)
    made = load(f"{path}?streaming=true&buffer=20", heldout=5, train=30)
    assert (len(made.heldout), len(made.train)) == (5, 30)
    assert len(read) == made.counts.rows <= 5 + 30 + 20
    assert not set(asked(made.heldout)) & set(asked(made.train))
    assert asked(made.heldout + made.train) != [f"q{i}" for i in range(35)]
    assert any("streamed" in line and f"{len(read)} rows read" in line for line in made.lines())
    assert load(f"{path}?streaming=true&buffer=20", heldout=5, train=30) == made
    read.clear()
    made = load(f"{path}?streaming=true&buffer=0", heldout=5, train=30)
    assert asked(made.heldout + made.train) == [f"q{i}" for i in range(35)]
    assert len(read) == 35
    # All of a file that is shorter than what the run could use.
    made = load(f"{path}?streaming=true&buffer=9", heldout=5, train=10**6)
    assert sorted(asked(made.heldout + made.train)) == sorted(f"q{i}" for i in range(500))
    assert len(load(f"{path}?streaming=true&limit=50", heldout=5, train=10**6).train) == 45


def test_streams_with_equal_prompts(tmp_path):
    path = write(tmp_path / "x.jsonl", [(f"q{i % 5}", f"a{i}") for i in range(100)])
    made = load(f"{path}?streaming=true&buffer=8", heldout=2, train=30)
    assert len(made.train) == 30
    assert len({e.key for e in made.heldout}) == 2
    assert not {e.key for e in made.heldout} & {e.key for e in made.train}
    taken = len(made.train) + len(made.heldout) + sum(made.counts.dropped.values())
    assert taken == made.counts.rows
    with pytest.raises(DataError, match="5 different prompts, and 6 are to be held out"):
        load(f"{path}?streaming=true", heldout=6, train=1)
    with pytest.raises(DataError, match="streamed, so no share"):
        load(f"{path}?streaming=true", heldout=0, train=1, share=0.5)


def test_prompts_that_another_data_set_holds_out_are_not_trained_on(tmp_path):
    first = load(
        write(tmp_path / "a.jsonl", [(f"q{i}", "a") for i in range(9)]), heldout=0, train=9
    )
    other = load(write(tmp_path / "b.jsonl", [("q1", "b"), ("r", "b")]), heldout=2, train=0)
    made = split.with_heldout(first, other)
    assert made.heldout == other.heldout
    assert sorted(asked(made.train)) == sorted(f"q{i}" for i in range(9) if i != 1)
    assert "1 left out: prompts that another source holds out" in made.lines()[0]


def test_an_endless_stream_ends():
    examples = (Example(chat(f"q{i}"), "a") for i in itertools.count())
    made = split.of_stream(examples, heldout=3, train=40, seed=0, buffer=1000, name="x")
    assert (len(made.heldout), len(made.train), made.counts.rows) == (3, 40, 1043)


def test_a_system_message_keeps_the_learnt_turns(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}))
    [example] = load(str(tmp_path / "x.jsonl"), heldout=0, train=1, system="s").train
    assert [example.prompt[i]["role"] for i in example.learnt] == ["assistant"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "words"}))
    assert load(str(tmp_path / "t.jsonl"), heldout=0, train=1).train[0].answer == "words"
    with pytest.raises(DataError, match=r"line 1: .*system"):
        load(str(tmp_path / "t.jsonl"), heldout=0, train=1, system="s")
