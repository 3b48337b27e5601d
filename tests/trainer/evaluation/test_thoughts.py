"""Thoughts in answers: generated ones for every grader, delimiters of models, backends alike."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import pytest
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.graders import GRADERS, find
from bmt_trainer.evaluation.score import grade
from bmt_trainer.evaluation.thoughts import KNOWN, Completion, Thoughts
from bmt_trainer.rewards import find as rewards
from bmt_trainer.rewards.trl_functions import trl_functions
from transformers import AddedToken

from tests.support.tiny_model import TEMPLATE, byte_tokenizer

DRAWS = 200
OPENING = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
CALL = '<tool_call>\n{"name": "f", "arguments": {"p": 1}}\n</tool_call>'
ACTION = 'Action: f\nAction Input: {"p": 1}'
# A right answer, what a model writes for it, and what it writes for a wrong one, by grader.
ANSWERS = {
    "words": ("Number 3", "Number 3", "Number 4"),
    "number": ("3", "3", "4"),
    "gsm8k": ("3", "So.\n#### 3", "So.\n#### 4"),
    "math": ("3", "It is \\boxed{3}.", "It is \\boxed{4}."),
    "letter": ("C", "The answer is (C).", "The answer is (D)."),
    "bbeh": ("yes", "The answer is: yes", "The answer is: no"),
    "tools": (ACTION, ACTION, ACTION.replace("Action: f", "Action: g")),
    "tool-calls": (CALL, CALL, CALL.replace('"f"', '"g"')),
}


@dataclass(frozen=True)
class Drawn:
    """A completion that was put together of known parts; answer: None if a thought is open."""

    text: str
    answer: str | None
    opened: bool = False


def drawn(random: Random, right: str, wrong: str) -> Drawn:
    """A completion with thoughts of some kind, in which right and wrong answers stand."""
    inner = [random.choice([right, wrong, "hm", "", "\n", "1 < 2 > 1"]) for _ in range(3)]
    last = random.choice([right, wrong, f" {right}\n", f"\n\n{wrong}", ""])
    o, c = random.choice(
        [
            ("<think>", "</think>"),
            ("<Think>", "</THINK>"),
            ("<think >", "</think >"),
            ("< think>", "< / think>"),
        ]
    )
    lead = random.choice(["", "\n", "  ", "Sure. "])
    kind = random.choice(
        [
            "none",
            "whole",
            "cut",
            "nested",
            "nested cut",
            "inner cut",
            "several",
            "several cut",
            "empty",
            "opened",
            "opened cut",
            "opened twice",
            "end alone",
        ]
    )
    a, b, d = inner
    match kind:
        case "none":
            return Drawn(last, last)
        case "whole":
            return Drawn(f"{lead}{o}{a}{c}{last}", last)
        case "cut":
            return Drawn(f"{lead}{o}{a} {right}", None)
        case "nested":
            return Drawn(f"{lead}{o}{a}{o}{b}{c}{d}{c}{last}", last)
        case "nested cut":
            return Drawn(f"{lead}{o}{a}{o}{b}{c}{right}", None)
        case "inner cut":
            return Drawn(f"{lead}{o}{a}{o}{right}", None)
        case "several":
            return Drawn(f"{lead}{o}{a}{c}{right}{o}{d}{c}{last}", last)
        case "several cut":
            return Drawn(f"{lead}{o}{a}{c}{right}{o}{d}", None)
        case "empty":
            return Drawn(f"{lead}{o}{random.choice(['', ' ', chr(10)])}{c}{last}", last)
        case "opened":
            return Drawn(f"{a}{c}{last}", last, opened=True)
        case "opened cut":
            return Drawn(f"{a}{right}", None, opened=True)
        case "opened twice":
            return Drawn(f"\n{o}{a}{c}{last}", last, opened=True)
        case _:
            return Drawn(f"{a} {right}{c}{last}", last)


@pytest.mark.found
@pytest.mark.parametrize("name", GRADERS)
def test_generated_answers_are_graded_as_their_text_after_the_thought(name):
    if name == "math":
        pytest.importorskip("math_verify")
    grader, (answer, right, wrong) = find(name), ANSWERS[name]
    assert grader.by_form(right, answer)
    assert not grader.by_any(wrong, answer)
    random, seen = Random(name), set()
    by_reward = rewards.find(name)
    example = Example(chat("q"), answer)
    opening, plain = byte_tokenizer(), byte_tokenizer()
    opening.chat_template = OPENING
    readers = {True: CompletionReader(opening), False: CompletionReader(plain)}
    for _ in range(DRAWS):
        one = drawn(random, right, wrong)
        expected = [
            0.0 if one.answer is None else float(compare(one.answer, answer))
            for compare in (grader.by_form, grader.by_any)
        ]
        reader = readers[one.opened]
        ids = plain(one.text, add_special_tokens=False)["input_ids"]
        ways = {
            "tokens": reader.of_ids(ids, example, cut=False),
            "text": Completion(one.text, opened=one.opened),
            "server": reader.of_message(one.text, None, example, cut=False),
            "parser": reader.of_message(*parsed(one), example, cut=False),
        }
        if not one.opened:
            ways["plain text"] = one.text
        for way, completion in ways.items():
            given = [grader.strict(completion, answer), grader.lenient(completion, answer)]
            assert given == expected, (way, one)
            marks = by_reward.marks([completion], [example])
            assert [*marks.strict, *marks.lenient] == expected, (way, one)
            assert marks.unfinished == (one.answer is None) or way == "parser", (way, one)
        seen.add((one.answer is None, expected[0], one.opened))
    assert len(seen) >= 5  # right, wrong and unfinished, with and without an opened prompt


def parsed(one: Drawn) -> tuple[str, str | None]:
    """Text and thoughts as vLLM's parser of <think> gives them apart: by the first end."""
    start, end = "<think>", "</think>"
    text = one.text
    if start not in text and end not in text and not one.opened:
        return text, None
    head, found, tail = text.partition(start)
    text = tail if found else head
    if (found and head.strip()) or (not found and not one.opened and end not in text):
        return one.text, None  # a preamble, which that parser drops, is kept by ours
    if end not in text:
        return "", text
    reasoning, _, content = text.partition(end)
    return content, reasoning


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "text", "answer", "strict", "lenient"),
    [
        ("gsm8k", "<think>so #### 3 maybe, or", "3", False, False),
        ("letter", "<think>maybe the answer is (C), or", "C", False, False),
        ("words", "<think>It is 3.</think>\nNumber 3", "Number 3", True, True),
        ("number", "<think>It is 4.</think>\n3", "3", True, True),
        ("words", "<think>Number 3 or 4? ", "Number 3", False, False),
    ],
)
def test_a_cut_thought_has_no_answer(name, text, answer, strict, lenient):
    score = grade([text], [Example(chat("q"), answer)], find(name))
    assert (score.exact, score.lenient) == (strict, lenient)
    assert score.unfinished == (not text.count("</think>"))


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The tag is <think>.", "The tag is <think>.", True),
        ("<think>h</think>The tag is <think>.", "The tag is <think>.", True),
        ("a </think> b", "a </think> b", True),
        ("b", "a </think> b", False),
        ("<think>", "<think>", True),
        ("b", "<think>a</think>b", True),
        ("<think>other</think>\nb", "<think>a</think>b", True),
        ("<think>a</think>c", "<think>a</think>b", False),
    ],
)
def test_right_answers_that_have_the_delimiters(text, answer, right):
    """As a thought, they are not compared; as text, they must be there."""
    assert find("words").strict(text, answer) == right


def test_settings():
    text = "<r>4</r>3"
    example = Example(chat("q"), "3")
    for setting, right in ((None, 0), ("off", 0), ("<r> </r>", 1)):
        reader = CompletionReader(byte_tokenizer(), setting)
        made = reader.of_message(text, None, example, cut=False)
        assert find("number").strict(made, "3") == right
    off = CompletionReader(byte_tokenizer(), "off")
    thought = off.of_message("<think>3", None, example, cut=False)
    assert find("number").lenient(thought, "3") == 1
    for pair in ("## ##END", "##BEGIN ##"):  # one begins with the other
        opening, closing = pair.split()
        assert Thoughts.of_setting(pair).after(f"{opening}4{closing}3") == "3"
    for wrong in ("", "on", "<r>", "<r> <r>", "a b c"):
        with pytest.raises(ConfigError, match=r"thoughts: .* neither off nor two"):
            Thoughts.of_setting(wrong)


@pytest.mark.parametrize("pair", KNOWN, ids=[opening for opening, _ in KNOWN])
@pytest.mark.parametrize("special", [True, False])
def test_delimiters_of_chat_templates(pair, special):
    """Found in the template's source; special tokens among them are not in an answer's text."""
    opening, closing = pair
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE + f"{{# {opening} {closing} #}}"
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": [opening, closing]})
    reader, example = CompletionReader(tokenizer), Example(chat("q"), "3")
    for text, right in ((f"{opening}4{closing}3<|im_end|>", 1), (f"{opening}3", 0), ("3", 1)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made = reader.of_ids(ids, example, cut=False)
        assert find("number").strict(made, "3") == right, text
    other = CompletionReader(byte_tokenizer())
    untouched = other.of_message(f"{opening}3", None, example, cut=False)
    if pair != KNOWN[0]:  # a model that does not use them
        assert untouched.answer == f"{opening}3"


@pytest.mark.parametrize("pair", [("[THINK]", "[/THINK]"), ("<|channel|>", "<|message|>")])
def test_delimiters_that_are_special_without_a_role(pair):
    """As in gpt-oss: marked as special in the vocabulary, and no token has them as its role."""
    opening, closing = pair
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in pair])
    assert not {*pair} & set(tokenizer.all_special_tokens)
    if pair not in KNOWN:
        pair = ("<|channel|>analysis", "<|channel|>final")
        opening, closing = (f"{mark}<|message|>" for mark in pair)
    tokenizer.chat_template = TEMPLATE + f"{{# {pair[0]} {pair[1]} #}}"
    reader, example = CompletionReader(tokenizer), Example(chat("q"), "3")
    for text, right in ((f"{opening}4{closing}3<|im_end|>", 1), (f"{opening}3", 0), ("3", 1)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made = reader.of_ids(ids, example, cut=False)
        assert find("number").strict(made, "3") == right, text


@pytest.mark.parametrize(
    ("template", "prompt", "opened"),
    [
        (OPENING, chat("q"), True),
        (OPENING.replace("<think>\n", "<think>\n\n</think>\n\n"), chat("q"), False),
        (OPENING.replace("<think>\n", "<think>\nLet me "), chat("q"), True),
        (TEMPLATE, chat("Explain <think>"), False),
        (TEMPLATE + "{# <think> #}", chat("Explain <think>"), False),
        (None, "Q: 1 + 2?\nA: <think>\n", True),
        (None, "Say <think> twice. ", False),
        (None, chat("Explain <think>"), True),
    ],
)
def test_thoughts_that_a_prompt_opens(template, prompt, opened):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    example = Example(prompt, "3", template_kwargs={})
    assert CompletionReader(tokenizer).is_opened(example) == opened
    assert "<think>" in Encoder(tokenizer).prompt_text(example) or not opened


def test_time_to_read_grows_with_the_text_alone():
    text = "<" + " " * 200_000 + "\n" * 200_000
    begin = time.process_time()
    assert Thoughts().after(text) == text
    assert time.process_time() - begin < 5  # minutes for a pattern that tries all pairs of places


def test_tasks_of_models_that_do_not_think_are_as_they_were():
    """Text without delimiters is the answer, character by character, and no prompt is rendered."""
    reader = CompletionReader(byte_tokenizer())
    for text in ("", " 3 ", "a\n\nb", "1 < 2", "think", "</ think", "[THINK]a[/THINK]b"):
        made = reader.of_message(text, None, Example(chat("<think>"), ""), cut=False)
        assert (made.graded("x"), str(made)) == ((text, "x"), text)


FUNCTION = """
seen = []
def whole(completion, answer):
    seen.append(completion)
    return float("<think>" in completion)
def batch(completions, **kw):
    return [float("</think>" in c[-1]["content"]) for c in completions]
"""


def test_graders_as_rewards_see_the_answer_and_functions_the_whole(tmp_path):
    """In TRL's calls as in evaluation."""
    path = tmp_path / "mine.py"
    path.write_text(FUNCTION)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OPENING
    text = f"number + {path}:whole + {path}:batch"
    made = rewards.find(text).for_model(tokenizer, 64)
    example = Example(chat("q"), "3")
    rows = [{"prompt": "q", "answer": "3", "columns": {}, "example": example}]
    texts = ["It is 4.</think>3", "It is 3", "<think>4</think>\n3"]
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    given = {
        "prompts": [[{"role": "user", "content": "q"}]] * 3,
        "completions": [[{"role": "assistant", "content": t}] for t in texts],
        "completion_ids": ids,
        "trainer_state": SimpleNamespace(global_step=0),
        "row": [0, 0, 0],
    }
    values = [function(**given) for function in trl_functions(made, rows)]
    assert values == [[1, 0, 1], [0, 0, 1], [1, 0, 1]]
    completions = [made.reader.of_ids(i, example, cut=False) for i in ids]
    assert made.marks(completions, [example] * 3).strict == [2, 0, 3]
    off = rewards.find("number").for_model(tokenizer, 64, thoughts="off")
    assert trl_functions(off, rows)[0](**given) == [0, 0, 0]


@pytest.mark.parametrize("setting", [None, "off"])
@pytest.mark.parametrize("template", [TEMPLATE, OPENING])
def test_empty_thoughts_of_a_server_add_nothing(setting, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    reader = CompletionReader(tokenizer, setting)
    example = Example(chat("q"), "3", template_kwargs={})
    made = reader.of_message("3", "", example, cut=False)
    assert find("number").strict(made, "3") == 1
    assert (str(made) == "3") == (template == TEMPLATE or setting == "off")
    empty = reader.of_message("", "", example, cut=False)
    assert find("number").lenient(empty, "3") == 0


def test_scores_count_what_was_cut():
    examples = [Example(chat("q"), "3")] * 4
    completions = [
        Completion("3"),
        Completion("3 and", cut=True),
        Completion("<think>3", cut=True),
        Completion("<think>3"),
    ]
    score = grade(completions, examples, find("number"))
    assert (score.exact, score.cut, score.unfinished) == (1, 2, 2)
    assert "n = 4, cut: 2, unfinished thoughts: 2" in str(score)
    assert json.loads(json.dumps(score.to_json()))["cut"] == 2
    assert score.to_json()["unfinished_thoughts"] == 2
