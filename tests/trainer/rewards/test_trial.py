"""Rewards tried before training: whatever a function returns or raises, in one line."""

from __future__ import annotations

import warnings

import pytest
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError
from bmt_trainer.rewards.find import find

from tests.support.tiny_model import byte_tokenizer

ROWS = [Example(chat(f"{n} + {n}?"), str(2 * n), columns={"level": n}) for n in range(20)]
SINGLE = {
    "nothing": ("pass", "None, expected a number"),
    "pair": ("return (1, 'why')", r"tuple \(1, 'why'\)"),
    "mapping": ("return {'score': 1}", "dict {'score': 1}"),
    "text": ("return '1'", "str '1'"),
    "listed": ("return [1]", r"list \[1\]"),
    "coroutine": ("async def g(): return 1\n    return g()", "coroutine.*async def"),
    "infinite": ("return float('inf')", "inf, expected a finite"),
    "not_a_number": ("return float('nan')", "nan, expected a finite"),
    "huge": ("return 1e39", "1e\\+39, expected a finite"),
    "enormous": ("return 10 ** 400", "inf, expected a finite"),
    "imaginary": ("return 1j", "complex 1j"),
    "fails": ("return 1 / 0", "ZeroDivisionError: division by zero, single.py line 3"),
    "exits": ("raise SystemExit('no')", "SystemExit: no"),
    "lines": ("raise ValueError('a\\nb')", "ValueError: a b"),
}
BATCH = {
    "nothing": ("pass", "None, expected a list of 8 numbers"),
    "nones": ("return [None for _ in completions]", "not applicable, for each of 8 examples"),
    "pair": ("return [1.0 for _ in completions], 'why'", "tuple"),
    "tuple_of_all": ("return tuple(1.0 for _ in completions)", "tuple"),
    "mapping": ("return {'rewards': [1]}", "dict"),
    "number": ("return 1.0", "float 1.0"),
    "text": ("return 'a' * len(completions)", "str"),
    "generator": ("return (1.0 for _ in completions)", "generator"),
    "short": ("return [1.0]", "1 values for 8 completions"),
    "empty": ("return []", "0 values for 8"),
    "texts": ("return ['1'] * len(completions)", "str '1', expected a number or None"),
    "lists": ("return [[1.0]] * len(completions)", "list"),
    "square": ("import numpy\n    return numpy.ones((8, 1))", "ndarray"),
    "coroutine": ("async def g(): return []\n    return g()", "coroutine.*async def"),
    "coroutines": ("async def g(): return 1\n    return [g() for _ in completions]", "coroutine"),
    "one_nan": ("return [1.0] * 7 + [float('nan')]", "nan, expected a finite number"),
    "fails": ("raise KeyError('label')", "KeyError: 'label'"),
}


def tried(text, rows=ROWS):
    said = []
    rewards = find(text).for_model(byte_tokenizer(), 8)
    rewards.try_on(rows, said.append)
    return said


@pytest.mark.found
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("form", "name"), [*(("single", n) for n in SINGLE), *(("batch", n) for n in BATCH)]
)
def test_what_cannot_be_a_reward_is_refused_in_one_line(tmp_path, form, name, asynchronous):
    body, message = (SINGLE if form == "single" else BATCH)[name]
    path = tmp_path / f"{form}.py"
    taken = "completion, answer" if form == "single" else "completions, **kw"
    start = "async def" if asynchronous else "def"
    path.write_text(f"# a reward\n{start} {name}({taken}):\n    {body}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that is not awaited
        with pytest.raises(ConfigError, match=message) as raised:
            tried(f"{path}:{name}")
    assert f"{path}:{name}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_column_that_no_row_has_is_named_with_those_there_are(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def f(completions, solution): return [1.0] * len(completions)\n")
    with pytest.raises(ConfigError, match=r"takes solution.*columns: answer, level"):
        tried(f"{path}:f")
    # One row of many has it: it is None in the others, as in TRL.
    rows = [*ROWS, Example(chat("?"), "1", columns={"solution": "x"})]
    assert tried(f"{path}:f", rows) == []


def test_each_reward_is_called_once_with_real_rows(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "calls = []\n"
        "def f(prompts, completions, level, answer, **kw):\n"
        "    calls.append((prompts, completions, level, answer))\n"
        "    return [1.0] * len(level)\n"
    )
    rewards = find(f"{path}:f").for_model(byte_tokenizer(), 8)
    rows = [*ROWS[:3], Example(chat("no answer"), "", columns={"level": 9})]
    rewards.try_on(rows, print)
    [(prompts, completions, level, answer)] = rewards.rewards[0].function.__globals__["calls"]
    assert [p[0]["content"] for p in prompts] == ["0 + 0?", "1 + 1?", "2 + 2?", "no answer"]
    assert [c[0]["content"] for c in completions] == ["0", "2", "4", "placeholder"]
    assert (level, answer) == ([0, 1, 2, 9], ["0", "2", "4", ""])


def test_a_reward_among_others_that_never_applies_is_said(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def f(completions): return [None] * len(completions)\n")
    [said] = tried(f"words + {path}:f")
    assert "warning" in said
    assert "not applicable" in said


LEAVES = {
    "made": "class made:\n    def __init__(self): raise SystemExit(3)",
    "hard": "class Hard(BaseException): pass\ndef hard(c, a): raise Hard('no')",
    "cancelled": "import asyncio\nasync def cancelled(c, a): raise asyncio.CancelledError",
    "ctrl_c": "async def ctrl_c(c, a): raise KeyboardInterrupt",
    "mute": "class E(Exception):\n    def __str__(self): 1 / 0\ndef mute(c, a): raise E",
    "meta": "import torch\ndef meta(c, a): return torch.ones((), device='meta')",
    "hidden": "class V:\n    def __repr__(self): 1 / 0\ndef hidden(c, a): return V()",
}


@pytest.mark.found
@pytest.mark.parametrize("name", LEAVES)
def test_no_way_out_of_a_reward_is_unnamed(tmp_path, name):
    (tmp_path / "way.py").write_text(LEAVES[name])
    with pytest.raises(ConfigError, match=rf"reward .*way\.py:{name}: ") as raised:
        tried(f"{tmp_path}/way.py:{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.found
def test_a_reward_that_changes_its_inputs_changes_nothing_else(tmp_path):
    (tmp_path / "two.py").write_text(
        "def f(completions, prompts, meta):\n"
        "    for c, p, m in zip(completions, prompts, meta):\n"
        "        c[0]['content'] = 'changed'; p.clear(); m.append(1)\n"
        "    return [0.0] * len(meta)\n"
        "def g(completions, prompts, meta):\n"
        "    rows = zip(completions, prompts, meta)\n"
        "    return [float(c[0]['content'] == 'x' and len(p) == 1 and not m) for c, p, m in rows]\n"
    )
    rows = [Example(chat("q"), "x", columns={"meta": []}) for _ in range(3)]
    rewards = find(f"{tmp_path}/two.py:f + {tmp_path}/two.py:g").for_model(byte_tokenizer(), 8)
    assert rewards.marks(["x"] * 3, rows).chosen == [1.0] * 3
    assert all(row.columns == {"meta": []} for row in rows)


@pytest.mark.found
def test_an_option_counts_over_a_column_of_its_name(tmp_path):
    (tmp_path / "two.py").write_text(
        "def named(completions, level: int): return [level] * len(completions)\n"
        "def rest(completions, level: int = 0, **kwargs):\n"
        "    return [level + len(kwargs.get('levels', ()))] * len(completions)\n"
    )
    for name in ("named", "rest"):
        rewards = find(f"{tmp_path}/two.py:{name}?level=7").for_model(byte_tokenizer(), 8)
        assert rewards.marks(["x"] * 2, ROWS[:2]).chosen == [7.0, 7.0]


@pytest.mark.found
@pytest.mark.parametrize("weight", ["1e39", "1_0", "-1e300", ""])
def test_weights_that_a_trainer_cannot_hold_are_refused(weight):
    with pytest.raises(ConfigError, match="weight"):
        find(f"words?weight={weight}")
