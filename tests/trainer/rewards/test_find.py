"""Rewards by text: forms of functions, files with neighbors, classes, options, weights."""

from __future__ import annotations

import sys

import pytest
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError
from bmt_trainer.rewards.find import find

from tests.support.tiny_model import byte_tokenizer


@pytest.fixture
def write(tmp_path):
    """Writes files of a folder; returns the path of the first."""

    def written(**files):
        paths = []
        for name, text in files.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            paths.append(path)
        return paths[0]

    return written


def example(answer="3", **columns):
    return Example(chat("1 + 2?"), answer, columns=columns)


def values(text, completions=("3", "It is 3."), examples=None, *, tokenizer=None, longest=8):
    rewards = find(text).for_model(tokenizer or byte_tokenizer(), longest)
    return list(rewards.marks(completions, examples or [example()] * len(completions)).strict)


SIMPLE = """
def by_letter(c, a): return float(c == a)
def by_name(completion, answer, strict=True): return 2 * (completion == answer)
def only(c, a, /): return c.count(a)
async def later(completion, answer): return completion == answer
def near(completion, answer, tolerance: float): return tolerance
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("by_letter", [1, 0]),
        ("by_name", [2, 0]),
        ("only", [1, 1]),
        ("later", [1, 0]),
        ("near?tolerance=.25", [0.25, 0.25]),
        ("by_letter?weight=-0.5", [-0.5, 0]),
    ],
)
def test_functions_of_a_completion_and_its_answer(write, name, expected):
    assert values(f"{write(mine=SIMPLE)}:{name}") == expected


BATCH = """
def all_of_it(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer,
              level, **kwargs):
    log_extra("level", level)
    log_metric("mean", 1.0)
    assert [p[-1]["content"] for p in prompts] == ["1 + 2?"] * 2, prompts
    assert all(c[-1]["role"] == "assistant" for c in completions)
    assert trainer_state.global_step == 0
    return [len(i) + l for i, l in zip(completion_ids, level)]
def columns_alone(completions, level, missing=7): return [float(x) + missing for x in level]
def of_ids(completion_ids): return [len(i) for i in completion_ids]
def anything(**kw): return [len(c[0]["content"]) for c in kw["completions"]]
async def later(completions, **kw): return [0.5 for c in completions]
def none_of_some(completions, level): return [None if x == 2 else 1.0 for x in level]
def array(completions):
    import numpy
    return numpy.ones(len(completions), dtype="float16")
def tensor(completions):
    import torch
    return torch.ones(len(completions))
def scalars(completions):
    import numpy, torch
    return [numpy.float32(1), torch.tensor(2)]
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all_of_it", [1 + 1 + 1, 8 + 2]),
        ("columns_alone", [8, 9]),
        ("of_ids", [2, 8]),  # the end of a completion that was not cut off counts
        ("anything", [1, 8]),
        ("later", [0.5, 0.5]),
        ("none_of_some", [1, None]),
        ("array", [1, 1]),
        ("tensor", [1, 1]),
        ("scalars", [1, 2]),
    ],
)
@pytest.mark.found
def test_functions_of_trls_signature_get_what_they_name(write, name, expected):
    rows = [example(level=1), example(level=2)]
    assert values(f"{write(mine=BATCH)}:{name}", examples=rows) == expected


def test_token_ids_end_with_the_templates_end_of_a_turn_as_in_rollouts(write):
    tokenizer = byte_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    last = write(mine="def last(completion_ids): return [i[-1] for i in completion_ids]\n")
    assert values(f"{last}:last", tokenizer=tokenizer)[0] == end
    tokenizer.chat_template = None
    assert values(f"{last}:last", tokenizer=tokenizer)[0] == tokenizer.eos_token_id


def test_models_without_a_template_complete_text(write):
    path = write(
        mine="def f(prompts, completions): return [len(p + c) for p, c in "
        "zip(prompts, completions)]\n"
    )
    plain = byte_tokenizer()
    plain.chat_template = None
    assert values(f"{path}:f", tokenizer=plain) == [len("1 + 2?\n3"), len("1 + 2?\nIt is 3.")]


def test_sums_leave_out_what_does_not_apply(write):
    path = write(mine=BATCH)
    rows = [example(level=1), example(level=2)]
    text = f"words?weight=2 + {path}:none_of_some?weight=0.25 + {path}:later"
    assert values(text, ("3", "3"), rows) == [2.75, 2.5]
    assert find(text).weights == [2, 0.25, 1]


def test_a_lenient_reading_is_of_graders_alone(write):
    rewards = find(f"number + {write(mine=BATCH)}:later").for_model(byte_tokenizer(), 8, "lenient")
    marks = rewards.marks(["It is 3."], [example()])
    assert (marks.strict, marks.lenient, marks.chosen) == ([0.5], [1.5], [1.5])


CLASSES = """
import typing
class Target:
    made = 0
    def __init__(self, length: int, share: float = 1.0, strict: bool = False,
                 kind: typing.Literal["a", "b"] = "a", limit: int | None = 4,
                 words: list[str] = ()):
        Target.made += 1
        self.calls, self.options = 0, (length, share, strict, kind, limit, words)
    def __call__(self, completions, **kw):
        self.calls += 1
        return [float(self.calls)] * len(completions)
class Async:
    async def __call__(self, completion, answer): return 0.25
ready = Async()
class Useless: pass
"""


@pytest.mark.found
def test_classes_are_made_once_and_keep_their_state(write):
    path = write(mine=CLASSES)
    options = "length=12&share=0.5&strict=true&kind=b&limit=none&words=no,off&weight=3"
    rewards = find(f"{path}:Target?{options}").for_model(byte_tokenizer())
    assert [list(rewards.marks(["3"], [example()]).strict) for _ in range(2)] == [[3], [6]]
    made = rewards.rewards[0].function
    assert made.options == (12, 0.5, True, "b", None, ["no", "off"])
    assert type(made).made == 1
    assert values(f"{path}:Async") == values(f"{path}:ready") == [0.25, 0.25]


@pytest.mark.found
def test_a_file_imports_its_neighbors_each_its_own(tmp_path, write):
    write(one__mine="import helpers\ndef f(c, a): return helpers.N\n", one__helpers="N = 1\n")
    write(two__mine="from helpers import N\ndef f(c, a): return N\n", two__helpers="N = 2\n")
    before = list(sys.path)
    assert values(f"{tmp_path}/one/mine.py:f + {tmp_path}/two/mine.py:f", ["3"]) == [3]
    assert sys.path == before


def test_a_file_of_a_package_imports_relatively(tmp_path):
    root = tmp_path / "pack_of_rewards"
    (root / "deep").mkdir(parents=True)
    for folder in (root, root / "deep"):
        (folder / "__init__.py").touch()
    (root / "base.py").write_text("N = 1\n")
    (root / "deep" / "more.py").write_text("M = 2\n")
    (tmp_path / "beside_pack.py").write_text("L = 4\n")
    (root / "deep" / "mine.py").write_text(
        "from ..base import N\nfrom .more import M\n"
        "def f(c, a):\n    import beside_pack\n    return N + M + beside_pack.L\n"
    )
    assert values(f"{root}/deep/mine.py:f", ["3"]) == [7]


def test_dotted_paths(write, tmp_path, monkeypatch):
    write(
        rewards_of_mine="def f(c, a): return 0.5\nclass K:\n    @staticmethod\n"
        "    def g(c, a): return 0.75\n"
    )
    monkeypatch.chdir(tmp_path)
    assert values("rewards_of_mine.f", ["3"]) == values("rewards_of_mine:f", ["3"]) == [0.5]
    assert values("rewards_of_mine:K.g", ["3"]) == [0.75]


@pytest.mark.found
def test_rewards_of_trl():
    assert values("trl.rewards.think_format_reward", ["<think>\na\n</think>\nb", "b"]) == [1, 0]
    text = "trl.rewards.get_soft_overlong_punishment?max_completion_len=8&soft_punish_cache=4"
    assert values(text, ["abc", "abcde", "abcdefgh"]) == [0, -0.5, -1]
    text = "trl.rewards.get_repetition_penalty_reward?ngram_size=1&weight=2"
    assert values(text, ["abcdefgh", "aaaaaaaa"]) == [0, -1.75]


BROKEN = "def f(:\n"
FAULTY = """
number = 3
def one(c): return 1
def three(a, b, c): return 1
def nothing(): return 3
def stars(*args): return 1
def typed(completion, answer, size: int = 1, table: dict = None): return 1
class Useless: pass
class Needs:
    def __init__(self, size: int): pass
    def __call__(self, completion, answer): return 1
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "not one of words.*dotted path"),
        ("words + ", "empty part"),
        ("words?weight=heavy", "weight 'heavy'"),
        ("words?weight=nan", "weight 'nan'"),
        ("words?strict=true", "no option 'strict'"),
        ("words?weight=1&weight=2", "given twice"),
        ("words?weight", "key=value&key=value, not 'weight'"),
        ("{path}:number", "int is not a function"),
        ("{path}:absent", "no 'absent'; it has .*one"),
        ("{path}:one", r"takes \(c\); a reward takes \(completion, answer\)"),
        ("{path}:three", r"takes \(a, b, c\)"),
        ("{path}:nothing", "takes no completions, and returns int"),
        ("{path}:stars", r"takes \(\*args\)"),
        ("{path}:typed?size=big", "option size: 'big' is not an integer"),
        ("{path}:typed?sise=2", "did you mean size"),
        ("{path}:typed?table=2", "type dict takes no text"),
        ("{path}:Useless", "no __call__"),
        ("{path}:Needs", "size"),
        ("{path}:Needs?size=1.5", "'1.5' is not an integer"),
        ("{broken}:f", "SyntaxError"),
        ("{neighbor}:f", "ModuleNotFoundError.*no_such_neighbor"),
        ("{clash}:f", "imports 'datasets', which is a file next to it"),
        ("{folder}/absent.py:f", "no file"),
        ("no_such_package.module:f", "ModuleNotFoundError"),
        ("judge:localhost?model=m", "not an http"),
        ("judge:http://127.0.0.1:9", "model=NAME"),
        ("judge:http://127.0.0.1:9?model=m&timeout=soon", "'soon' is not a number"),
        ("judge:http://127.0.0.1:9?model=m&timeout=inf", "'inf' is not a finite number"),
    ],
)
def test_what_is_no_reward_is_an_error_in_one_line(write, tmp_path, text, message):
    places = {
        "path": write(mine=FAULTY),
        "broken": write(broken=BROKEN),
        "neighbor": write(neighbor="import no_such_neighbor\ndef f(c, a): return 1\n"),
        "clash": write(clash="import datasets\ndef f(c, a): return 1\n", datasets="X = 1\n"),
        "folder": tmp_path,
    }
    with pytest.raises(ConfigError, match=message) as raised:
        find(text.format(**places))
    assert "\n" not in str(raised.value)
    assert "reward" in str(raised.value)
