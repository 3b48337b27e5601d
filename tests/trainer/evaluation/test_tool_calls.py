"""Tool calls read out of text, and the grader that compares them."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.graders import find, find_for
from bmt_trainer.evaluation.tool_calls import calls_in
from bmt_trainer.rewards.find import find_for as rewards_for

CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"x": [1, None]}}}
OTHER = {"name": "now", "arguments": {}}


def hermes(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)


WRAPPINGS = {
    "hermes": hermes,
    "bare": lambda *calls: "\n".join(json.dumps(c, ensure_ascii=False) for c in calls),
    "list": lambda *calls: "[TOOL_CALLS] " + json.dumps(calls),
    "parameters": lambda *calls: "; ".join(
        json.dumps({"name": c["name"], "parameters": c["arguments"]}) for c in calls
    ),
    "openai": lambda *calls: json.dumps(
        {"tool_calls": [{"id": "1", "type": "function", "function": c} for c in calls]}
    ),
    "tags": lambda *calls: "\n".join(
        f"<tool_call>\n<function={c['name']}>\n"
        + "".join(
            f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v)}\n</parameter>\n"
            for k, v in c["arguments"].items()
        )
        + "</function>\n</tool_call>"
        for c in calls
    ),
}


@pytest.mark.parametrize("form", WRAPPINGS)
def test_calls_are_the_same_in_every_wrapping(form):
    grader = find("tool-calls")
    reference = hermes(CALL, OTHER)
    for text in (WRAPPINGS[form](CALL, OTHER), "Let me look.\n" + WRAPPINGS[form](CALL, OTHER)):
        assert calls_in(text) == calls_in(reference)
        assert grader.strict(text, reference)
        assert grader.lenient(text, reference)
    changed = {**CALL, "arguments": {**CALL["arguments"], "days": 3}}
    for calls in ((changed, OTHER), ({**CALL, "arguments": {}}, OTHER)):
        assert not grader.strict(WRAPPINGS[form](*calls), reference)
        assert grader.lenient(WRAPPINGS[form](*calls), reference)
    for calls in ((OTHER, CALL), (CALL,), (CALL, OTHER, OTHER), ({**CALL, "name": "f"}, OTHER)):
        assert not grader.strict(WRAPPINGS[form](*calls), reference)
        assert not grader.lenient(WRAPPINGS[form](*calls), reference)


@pytest.mark.parametrize("reading", ["strict", "lenient"])
@pytest.mark.parametrize("text", ["", " ", "get_weather Zürich 2", "<tool_call></tool_call>", "{}"])
def test_an_answer_without_the_call_is_never_right(text, reading):
    assert not getattr(find("tool-calls"), reading)(text, hermes(CALL))


def test_arguments_are_compared_as_json_values():
    def equal(one, two):
        texts = [hermes({"name": "f", "arguments": {"x": value}}) for value in (one, two)]
        return find("tool-calls").strict(*texts)

    for one, two in ((1, 1.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ("é", "\u00e9"), (None, None)):
        assert equal(one, two)
    for one, two in ((1, True), (1, "1"), (0, False), (None, ""), ([1, 2], [2, 1]), (0.1, 0.2)):
        assert not equal(one, two)


@pytest.mark.parametrize(
    "rest",
    [
        "<tool_call>\n{bad}\n</tool_call>",
        '<tool_call>\n{"name": "f", "arg',
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": {"x": 1}',
        "<function=f><parameter=x>1",
    ],
)
def test_a_right_call_with_a_malformed_one_is_right_by_leniency_only(rest):
    grader = find("tool-calls")
    text = f"{hermes(CALL)}\n{rest}"
    assert not grader.strict(text, hermes(CALL))
    assert grader.lenient(text, hermes(CALL))
    assert grader.strict(hermes(CALL), hermes(CALL))
    one_wrapping = hermes(CALL).replace("\n</tool", json.dumps(CALL) + "\n</tool")
    assert not grader.strict(one_wrapping, hermes(CALL, CALL))


def test_answers_with_calls_are_compared_so_by_default():
    # Another layout of the same call.
    text = json.dumps({"arguments": CALL["arguments"], "name": CALL["name"]})
    for dataset in ("rows.jsonl", "org/set"):
        grader = find_for(dataset, None)
        assert grader.strict(text, hermes(CALL))
        assert not grader.strict("", hermes(CALL))
        assert not grader.lenient("", hermes(CALL))
        assert grader.strict("Paris ", "Paris")
        assert not grader.strict("Paris!", "Paris")
        assert grader.lenient("It is Paris!", "Paris")
    assert not find_for("rows.jsonl", "words").strict(text, hermes(CALL))


def test_answers_in_chats_of_several_turns_are_graded_without_a_tokenizer():
    """As `bmt-train eval` does it, for which no reward takes prompts."""
    chat = ({"role": "system", "content": "S"}, {"role": "user", "content": "q"})
    example = Example(chat, hermes(CALL), tools=({"type": "function"},))
    grader = rewards_for("rows.jsonl", None)
    grader.try_on([example], print)
    assert grader.marks([hermes(CALL)], [example]).strict == [1.0]
    assert grader.marks([""], [example]).strict == [0.0]
