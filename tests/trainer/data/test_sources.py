"""Loading of examples from tasks, files and the Hub, and their splits."""

import json
import re
import subprocess
import sys

import pytest
from bmt_trainer.data.examples import Example, with_shots
from bmt_trainer.data.sources import load
from bmt_trainer.data.tasks import TASKS
from bmt_trainer.errors import ConfigError, DataError

GENERATED = [
    "task:sort-numbers",
    "task:reverse-words?least=3&most=4",
    "task:initials",
    "reasoning-gym:word_sequence_reversal?min_words=4&max_words=5",
    "reasoning-gym:letter_counting",
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("dataset", GENERATED)
def test_no_prompt_is_in_both_parts_or_twice(dataset):
    split = load(dataset, heldout=50, train=100)
    assert (len(split.heldout), len(split.train)) == (50, 100)
    assert len({e.key for e in split.heldout + split.train}) == 150


@pytest.mark.parametrize("dataset", GENERATED)
def test_the_same_seed_gives_the_same_split_and_heldout_ignores_train(dataset):
    split = load(dataset, heldout=20, train=30)
    assert load(dataset, heldout=20, train=30) == split
    assert load(dataset, heldout=20, train=5).heldout == split.heldout
    assert load(dataset, heldout=20, train=30, seed=1) != split


def test_answers_of_the_built_in_tasks_are_right():
    for example in load("task:sort-numbers?order=ascending", heldout=20, train=0).heldout:
        question = example.messages[0]["content"].rsplit(": ", 1)[1]
        numbers = [int(n) for n in question.split(", ")]
        assert example.answer == ", ".join(str(n) for n in sorted(numbers))
    for example in load("task:sort-numbers", heldout=20, train=0).heldout:
        numbers = [int(n) for n in example.answer.split(", ")]
        assert numbers == sorted(numbers)[::-1]
    for example in load("task:reverse-words", heldout=20, train=0).heldout:
        words = example.messages[0]["content"].rsplit(": ", 1)[1].split(", ")
        assert example.answer.split(", ") == words[::-1]
    for example in load("task:initials", heldout=20, train=0).heldout:
        words = example.messages[0]["content"].rsplit(": ", 1)[1].split(", ")
        assert example.answer == "".join(w[0] for w in words)
    for example in load(
        "task:arithmetic?operations=add,subtract,multiply", heldout=60, train=0
    ).heldout:
        formula = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\? .*", example.messages[0]["content"])
        a, sign, b = formula.groups()
        assert (
            int(example.answer)
            == {
                "+": int(a) + int(b),
                "-": int(a) - int(b),
                "*": int(a) * int(b),
            }[sign]
        )
    plain = load("task:arithmetic?instruction=false", heldout=20, train=0).heldout
    assert all(example.messages[0]["content"].endswith("?") for example in plain)
    both = [f"task:count-letters?instruction={value}" for value in ("true", "false")]
    for example in [e for name in both for e in load(name, heldout=20, train=0).heldout]:
        found = re.search(
            r"letter (\w) occur in these words: (.*)\?", example.messages[0]["content"]
        )
        assert int(example.answer) == found[2].count(found[1]) > 0
    assert set(TASKS) == {
        "arithmetic",
        "count-letters",
        "initials",
        "reverse-words",
        "sort-numbers",
        "word-order",
    }


def test_gsm8k(tmp_path):
    path = tmp_path / "g.jsonl"
    rows = [{"question": f"{i} apples?", "answer": f"Work.\n#### 1,00{i}"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    [example] = load(f"gsm8k:{path}", heldout=1, train=2).heldout
    assert len(load(f"gsm8k:{path}", heldout=3, train=0).heldout) == 3
    with pytest.raises(DataError, match="hold out fewer"):
        load(f"gsm8k:{path}", heldout=3, train=1)
    text = example.messages[0]["content"]
    assert text.endswith(
        'apples? Let\'s think step by step and output the final answer after "####".'
    )
    assert example.answer == f"100{text[0]}"
    path.write_text('{"question": "x", "answer": "7"}')
    with pytest.raises(DataError, match="line 1"):
        load(f"gsm8k:{path}", heldout=0, train=1)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("task:nothing", "there are arithmetic"),
        ("task:initials?colour=red", "does not take"),
        ("task:initials?least=9&most=3", "does not take"),
        ("task:arithmetic?operations=root", "does not take"),
        ("task:initials?least", "key=value"),
        ("task:sort-numbers?least=1&most=1", "gives only 90 different"),
        ("reasoning-gym:nothing", "no task 'nothing'"),
        ("reasoning-gym:letter_counting?colour=red", "does not take"),
        ("reasoning-gym:letter_counting?min_words=-4", "does not take"),
        ("absent.jsonl", "cannot be read"),
        ("absent.jsonl?split=train", "does not take split"),
    ],
)
def test_wrong_names_and_options(dataset, says):
    with pytest.raises(DataError, match=says):
        load(dataset, heldout=100, train=5)


def test_jsonl_with_both_row_forms(tmp_path):
    rows = [
        {"prompt": "a?", "completion": " A\n"},
        {"prompt": [{"role": "user", "content": "b?"}], "completion": "B"},
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "c?"}],
            "completion": [{"role": "assistant", "content": "C"}],
        },
        {
            "messages": [
                {"role": "user", "content": "d?"},
                {"role": "assistant", "content": "D"},
            ]
        },
        {"prompt": "a?", "completion": "again"},
    ]
    split = load(write(tmp_path / "x.jsonl", rows), heldout=1, train=99)
    found = {e.messages[-1]["content"]: e.answer for e in split.heldout + split.train}
    assert set(found) == {"a?", "b?", "c?", "d?"}  # a repeated prompt is one example
    assert (found["b?"], found["c?"], found["d?"]) == ("B", "C", "D")
    assert len(split.heldout) == 1
    assert load(write(tmp_path / "x.jsonl", rows), heldout=1, train=99) == split
    assert len(load(str(tmp_path / "x.jsonl"), heldout=1, train=2).train) == 2


def test_a_system_message_goes_before_prompts_that_have_none(tmp_path):
    rows = [
        {"prompt": "a?", "completion": "A"},
        {"prompt": [{"role": "system", "content": "own"}], "completion": "B"},
    ]
    split = load(write(tmp_path / "x.jsonl", rows), heldout=0, train=9, system="be brief")
    assert sorted(e.messages[0]["content"] for e in split.train) == ["be brief", "own"]
    assert all(e.messages[0]["role"] == "system" for e in split.train)


@pytest.mark.parametrize(
    "row",
    [
        "text",
        {"completion": "a"},
        {"prompt": 3, "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
        {"messages": []},
        {"prompt": [], "completion": "b"},
    ],
)
def test_a_malformed_line_is_named(tmp_path, row):
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(DataError, match=r"x\.jsonl, line 2"):
        load(path, heldout=0, train=1)


def test_a_line_that_is_not_json(tmp_path):
    (tmp_path / "x.jsonl").write_text('\n{"prompt": ')
    with pytest.raises(DataError, match="line 2: not JSON"):
        load(str(tmp_path / "x.jsonl"), heldout=0, train=1)


def test_too_few_examples_to_hold_out(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": str(i), "completion": "b"} for i in range(3)])
    with pytest.raises(DataError, match="3 different prompts"):
        load(path, heldout=3, train=1)


def test_hub_data_sets(monkeypatch, tmp_path):
    import datasets

    rows = [{"question": f"q{i}", "answer": f"a{i}", "extra": 1} for i in range(5)]
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = "org/name?config=main&split=test&prompt=question&completion=answer"
    split = load(spec, heldout=2, train=9)
    assert asked == [("org/name", "main", "test")]
    assert {(e.messages[0]["content"], e.answer) for e in split.train + split.heldout} == {
        (f"q{i}", f"a{i}") for i in range(5)
    }
    with pytest.raises(DataError, match="does not take columns"):
        load("org/name?columns=x", heldout=1, train=1)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: 1 / 0)
    with pytest.raises(DataError, match="neither task:NAME"):
        load("org/name", heldout=1, train=1)


def test_shots_are_turns_before_the_question():
    system = {"role": "system", "content": "s"}

    def example(n):
        return Example((system, {"role": "user", "content": f"q{n}"}), f"a{n}")

    shown = with_shots(example(9), [example(1), example(2)])
    assert [m["content"] for m in shown.prompt] == ["s", "q1", "a1", "q2", "a2", "q9"]
    assert [m["role"] for m in shown.prompt] == ["system", *["user", "assistant"] * 2, "user"]
    assert shown.answer == "a9"
    assert with_shots(example(9), []) == example(9)


def test_reasoning_gym_is_imported_only_for_its_data_sets():
    code = (
        "import random, sys\nrandom.seed(0)\nbefore = random.getstate()\n"
        "from bmt_trainer.data.sources import load\n"
        "load('task:initials', heldout=1, train=1)\n"
        "print('reasoning_gym' in sys.modules, random.getstate() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.found
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("?limit=99999999999999999999999", "limit: .* is above"),
        ("?weight=1e308", "weight: 1e\\+308 is above"),
        ("?weight=inf", "weight: inf is above"),
        ("?tools=tolls", "no row has a column 'tolls' \\(for tools\\)"),
        ("?system=persona&input=context", "no row has a column"),
    ],
)
def test_options_out_of_reach_are_named(tmp_path, options, says):
    name = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(DataError, match=says):
        load(
            f"{name}{options} + {name}?weight=1" if "weight" in options else name + options,
            heldout=0,
            train=9,
        )


@pytest.mark.found
def test_a_column_of_some_rows_may_be_absent_from_others(tmp_path):
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "a", "who": "S"}]
    split = load(write(tmp_path / "a.jsonl", rows) + "?system=who", heldout=0, train=9)
    assert sorted(len(example.messages) for example in split.train) == [1, 2]


@pytest.mark.found
def test_a_home_folder_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no home folder for ~no-such-user"):
        load("~no-such-user/x.jsonl", heldout=0, train=1)


@pytest.mark.found
def test_a_mixture_may_be_of_several_lines(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    two = write(tmp_path / "b.jsonl", [{"prompt": "r", "completion": "b"}])
    assert len(load(f"{one} +\n{two}\n", heldout=0, train=9).train) == 2
