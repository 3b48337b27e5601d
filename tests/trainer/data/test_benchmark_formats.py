"""Readers of benchmarks' files in their publishers' forms, with made-up rows."""

from __future__ import annotations

import gzip
import json

import pytest
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.graders import find, find_for
from bmt_trainer.evaluation.intervals import quarter

OPTIONS = ["red", "blue", "green"]
API = {
    "Name": "Kettle",
    "NLDocumentation": 'boil: Heat water.\nParameters: {"litres": "Required. Number."}',
    "Instructions": ["Boil a litre of water.", "Boil it, then two litres more.", "As before."],
    "Golden_Answers": [
        [{"Action": "boil", "Action_Input": '{"litres": 1}'}],
        [
            {"Action": "boil", "Action_Input": '{"litres": 1}'},
            {"Action": "boil", "Action_Input": '{"litres": 2}'},
        ],
        [{"Action": "boil", "Action_Input": '{"litres": ${litres from before}}'}],
    ],
}


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def one(dataset):
    [example] = all_of(dataset)
    return example


def all_of(dataset):
    return sorted(load(dataset, heldout=0, train=100).train, key=lambda e: e.key)


def test_gsm8k_in_both_protocols(tmp_path):
    path = lines(tmp_path / "g.jsonl", [{"question": "Two and two?", "answer": "So.\n#### 1,004"}])
    assert one(f"gsm8k:{path}").answer == "1004"
    assert one(f"gsm8k:{path}").messages[0]["content"].endswith('final answer after "####".')
    system, turn = one(f"gsm8k-boxed:{path}").prompt
    assert system["role"] == "system"
    assert "\\boxed{}" in turn["content"]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "p", "solution": "s", "answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
        ({"problem": "p", "solution": "no \\boxed{1}, but \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
        ({"question": "p", "solution": ["s"], "final_answer": ["2", "$3$"]}, "2, 3"),
        ({"question": "p", "solution": "['s']", "final_answer": "['2']"}, "2"),
        ({"id": 1, "question": "p", "problem": "p", "answer": 27.0}, "27"),
    ],
)
def test_every_form_of_mathematics_sets(tmp_path, row, answer):
    example = one(f"math:{lines(tmp_path / 'm.jsonl', [row])}")
    assert example.answer == answer
    assert example.messages[1]["content"].startswith("p\n")


@pytest.mark.found
def test_simplerl_zoos_prompt_for_small_models(tmp_path):
    """A text, as its evaluation of Qwen2.5-0.5B has it; braces of a question are no fields."""
    row = {"problem": "What is {x}\\boxed{2}?", "answer": "2"}
    example = one(f"math-simple:{lines(tmp_path / 'm.jsonl', [row])}")
    asked = "Question:\nWhat is {x}\\boxed{2}?\nAnswer:\nLet's think step by step.\n"
    assert (example.prompt, example.answer) == (asked, "2")
    path = lines(tmp_path / "g.jsonl", [{"question": "Two?", "answer": "So.\n#### 1,004"}])
    example = one(f"gsm8k-simple:{path}")
    assert (example.prompt, example.answer) == (
        asked.replace("What is {x}\\boxed{2}?", "Two?"),
        "1004",
    )
    assert find("math").lenient("1000 and 4, so 1004 dollars.", example.answer)


def test_mmlu_pro_by_subject(tmp_path):
    rows = [
        {"question": f"Colour {i}?", "options": OPTIONS, "answer": "B", "category": subject}
        for i, subject in enumerate(["law", "law", "computer science"])
    ]
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    example = one(f"mmlu-pro:{path}?subject=computer+science")
    assert example.messages[0]["content"].splitlines()[1:4] == ["(A) red", "(B) blue", "(C) green"]
    assert example.answer == "The answer is (B)."
    assert len(all_of(f"mmlu-pro:{path}?subject=law")) == 2
    with pytest.raises(DataError, match=r"subject health; it has computer science, law$"):
        all_of(f"mmlu-pro:{path}?subject=health")
    bad = lines(tmp_path / "bad.jsonl", [{**rows[0], "answer": "D"}])
    with pytest.raises(DataError, match="line 1: not a row of mmlu-pro"):
        all_of(f"mmlu-pro:{bad}")


def test_bbeh(tmp_path):
    path = tmp_path / "bbeh_any.json"
    path.write_text(json.dumps({"examples": [{"input": "Yes?", "target": "No"}], "canary": "c"}))
    assert one(f"bbeh:{path}").answer == "The answer is: No"
    path.write_text("{}")
    with pytest.raises(DataError, match="neither a list nor"):
        all_of(f"bbeh:{path}")


def test_tool_calls_of_toolalpaca_and_sdft(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps([API]))
    boil, both = sorted(all_of(f"tools:{path}"), key=lambda e: len(e.answer))
    assert boil.answer == 'Action: boil\nAction Input: {"litres": 1}'
    assert both.answer.count("Action: boil") == 2
    assert "Heat water" in boil.messages[0]["content"]
    row = {
        "prompt": "Boil.",
        "golden_answer": [{"Action": "boil", "Action_Input": {"litres": 1}}],
        "golden_response": ["Thought: boil.", "Action: boil"],
    }
    example = one(f"tools:{lines(tmp_path / 't.jsonl', [row])}")
    assert example.demonstration == "Thought: boil.\nAction: boil"
    assert example.answer == boil.answer


def test_malformed_files_and_options_are_named(tmp_path):
    path = lines(tmp_path / "g.jsonl", [{"question": "?"}])
    with pytest.raises(DataError, match="line 1: not a row of gsm8k"):
        all_of(f"gsm8k:{path}")
    with pytest.raises(DataError, match="does not take part"):
        all_of(f"gsm8k:{path}?part=1")
    with pytest.raises(DataError, match="cannot be read"):
        all_of(f"math:{tmp_path / 'none.jsonl'}")
    with pytest.raises(DataError, match="is a folder"):
        all_of(f"math:{tmp_path}")


@pytest.mark.parametrize(
    ("grader", "completion", "answer", "strict", "lenient"),
    [
        ("letter", "The answer is (C).", "The answer is (C).", True, True),
        ("letter", "the answer is **C**", "The answer is (C).", True, True),
        ("letter", "(B) is wrong, so (C)", "The answer is (C).", False, True),
        ("letter", "I think it is blue.", "The answer is (I).", False, False),
        ("letter", "C", "The answer is (C).", False, True),
        ("letter", "The answer is (B). Or (C)?", "The answer is (C).", False, True),
        ("letter", "The answer is Carrots", "The answer is (C).", False, False),
        ("bbeh", "So.\nThe answer is: yes, no,yes.", "The answer is: yes, no, yes", True, True),
        ("bbeh", "The answer is: (a)", "The answer is: A", True, True),
        ("bbeh", "The answer is: $\\boxed{7.0}$", "The answer is: 7", True, True),
        ("bbeh", "It is\n[emma, lily]", "The answer is: emma, lily", False, True),
        ("bbeh", "The answer is: no", "The answer is: yes", False, False),
        ("bbeh", "", "The answer is: yes", False, False),
        (
            "tools",
            'Thought: now.\nAction: boil\nAction Input: {"litres": 1}',
            'Action: boil\nAction Input: {"litres": 1}',
            True,
            True,
        ),
        (
            "tools",
            'Action: boil\nAction Input: {"litres": 2}',
            'Action: boil\nAction Input: {"litres": 1}',
            False,
            True,
        ),
        (
            "tools",
            'Action: boil\nAction Input: {"litres": 1}\nAction: boil\nAction Input: {}',
            'Action: boil\nAction Input: {"litres": 1}',
            False,
            False,
        ),
        # A flaw of the protocol: an input ends at its first closing brace.
        (
            "tools",
            'Action: boil\nAction Input: {"how": {"hot": 1}}',
            'Action: boil\nAction Input: {"how": {"hot": 1}}',
            False,
            True,
        ),
    ],
)
def test_graders(grader, completion, answer, strict, lenient):
    found = find(grader)
    assert (found.strict(completion, answer), found.lenient(completion, answer)) == (
        strict,
        lenient,
    )


def test_default_graders_of_forms():
    assert find_for("bbeh:x.json", None).name == "bbeh"
    assert find_for("mmlu-pro:x.jsonl?subject=law", None).name == "letter"
    assert find_for("mmlu-pro:x.jsonl", "words").name == "words"
    assert find_for("task:initials", None).name == "words"


def test_a_share_is_held_out(tmp_path):
    rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(11)]
    path = lines(tmp_path / "g.jsonl", rows)
    split = load(f"gsm8k:{path}", heldout=5, train=100, share=0.25)
    assert (len(split.train), len(split.heldout)) == (8, 3)
    with pytest.raises(DataError, match="without end"):
        load("task:initials", heldout=5, train=1, share=0.25)


def test_the_held_out_quarter_equals_the_papers_tables():
    # (train, test) of some rows of tables 9 and 10.
    for train, test in [(537, 180), (307, 103), (825, 276), (285, 96), (150, 50), (90, 30)]:
        assert quarter(train + test) == test
