"""Rows of every form that is in use, and rows that are refused by row and field."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Tokens
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.errors import DataError

from tests.support.chats.templates import tokenizer_of

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
ARGUMENTS = '{"city":"Oslo"}'
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": ARGUMENTS},
}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", None], "default": None}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
SECOND = {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
BOTH = {"role": "assistant", "content": "", "tool_calls": [CALL, SECOND]}


def read(row):
    return example_of(row, "x.jsonl, line 7")


def learnt(row, name="chatml-tools", learn="all"):
    """Text of the learnt tokens of a row, all training rows joined."""
    tokenizer = tokenizer_of(name)
    texts = []
    for encoded in Encoder(tokenizer, learn).encode(read(row)):
        pairs = zip(encoded.input_ids, encoded.completion_mask, strict=True)
        texts.append(tokenizer.decode([token for token, on in pairs if on]))
    return "".join(texts)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, REPLY]}, "a"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "a"),
        ({"conversations": [USER, REPLY]}, "a"),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "a"),
        ({"messages": json.dumps([USER, REPLY])}, "a"),
        ({"prompt": "q", "completion": " a\n"}, " a\n"),
        ({"prompt": [USER], "completion": [REPLY]}, "a"),
        ({"prompt": "q", "completion": [REPLY]}, "a"),
        ({"prompt": [USER], "completion": "a"}, "a"),
        ({"instruction": "i", "output": "a"}, "a"),
        ({"instruction": "i", "input": "j", "output": "a", "text": "all of it"}, "a"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "a"),
        ({"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "b"}]}, "a"),
        ({"prompt": "q", "chosen": [REPLY], "rejected": [{**REPLY, "content": "b"}]}, "a"),
        (
            {"prompt": "q", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "b"}]},
            "a",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
            "a",
        ),
        ({"messages": [USER, REPLY], "prompt": None, "text": None}, "a"),
    ],
)
def test_forms_of_rows(row, expected):
    assert learnt(row) == f"{expected}<|im_end|>"
    assert read(row).columns == row
    assert read(row).location == "x.jsonl, line 7"


def test_the_first_form_of_several_is_taken():
    row = {"messages": [USER, REPLY], "prompt": "p", "completion": "c", "text": "t"}
    assert learnt(row) == "a<|im_end|>"
    del row["messages"]
    assert learnt(row) == "c<|im_end|>"


def test_rows_of_text_are_learnt_whole():
    assert learnt({"text": " as it is\n"}) == " as it is\n<|im_end|>"
    assert learnt({"text": "ends<|im_end|>"}) == "ends<|im_end|>"
    example = example_of({"prompt": "p ", "completion": " c"}, "x", form="text")
    [row] = Encoder(tokenizer_of("chatml")).encode(example)
    assert row.pieces == (("p ", False), (" c", True), ("<|im_end|>", True))
    first, second = read({"text": "one"}), read({"text": "two"})
    assert first.key != second.key


@pytest.mark.found
def test_texts_without_a_template_are_concatenated_as_they_are():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = None
    row = {"prompt": "def f(x):\n", "completion": "    return x\n\n"}
    [encoded] = Encoder(tokenizer).encode(read(row))
    assert tokenizer.decode(encoded.input_ids) == "def f(x):\n    return x\n\n<|im_end|>"
    assert learnt(row) == "    return x\n\n<|im_end|>"
    assert learnt({"prompt": "The capital is", "completion": " Paris"}) == " Paris<|im_end|>"
    with pytest.raises(DataError, match=r"line 7: .*--chat-template"):
        Encoder(tokenizer).encode(read({"messages": [USER, REPLY]}))


@pytest.mark.parametrize(
    ("more", "mask"),
    [
        ({}, (True, True, True)),
        ({"labels": [-100, 6, 0]}, (False, True, True)),
        ({"completion_mask": [0, 0, 1]}, (False, False, True)),
        ({"assistant_masks": [0, 1, 0], "attention_mask": [1, 1, 1]}, (False, True, False)),
    ],
)
def test_tokenized_rows(more, mask):
    example = read({"input_ids": [5, 6, 0], **more})
    assert example.tokens == Tokens((5, 6, 0), mask)
    [row] = Encoder(tokenizer_of("chatml")).encode(example)
    assert row.input_ids == [5, 6, 0]
    assert tuple(map(bool, row.completion_mask)) == mask


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": "5 6"}, "input_ids"),
        ({"input_ids": [5, 6.0]}, "input_ids"),
        ({"input_ids": [5, 6], "labels": [-100]}, "labels: 1 values for 2"),
        ({"input_ids": [5, 6], "labels": [6, -100]}, r"labels\[0\]: 6 is neither"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "labels: no token is learnt"),
        ({"input_ids": [5, 6], "completion_mask": [1, 0]}, "completion_mask: no token"),
        ({"input_ids": [5, 6], "completion_mask": [0, 2]}, r"completion_mask\[1\]: 2"),
        ({"input_ids": [5, 6], "attention_mask": [0, 1]}, r"attention_mask\[0\]"),
        ({"input_ids": [5, 100_000]}, r"input_ids\[1\]: 100000 is outside"),
        ({"input_ids": [5, -1]}, r"input_ids\[1\]: -1 is outside"),
    ],
)
def test_tokenized_rows_that_are_refused(row, field):
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: {field}"):
        Encoder(tokenizer_of("chatml")).encode(read(row))


@pytest.mark.found
def test_tool_calls_are_learnt_with_their_arguments():
    row = {"messages": [USER, CALLED], "tools": [TOOL]}
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
    assert learnt(row) == f"{text}<|im_end|>"
    assert read(row).tools == (TOOL,)
    assert read({**row, "tools": json.dumps([TOOL])}).tools == (TOOL,)
    assert read({**row, "tools": [TOOL["function"]]}).tools == (TOOL,)
    null = {**CALLED, "content": None}
    assert learnt({**row, "messages": [USER, null]}) == f"{text}<|im_end|>"
    steps = [USER, null, ANSWERED, REPLY]
    assert learnt({**row, "messages": steps}) == f"{text}<|im_end|>a<|im_end|>"
    assert learnt({**row, "messages": steps}, learn="last") == "a<|im_end|>"
    example = Encoder(tokenizer_of("chatml-tools")).checked(read(row))
    assert example.answer == text


@pytest.mark.found
@pytest.mark.parametrize("content", ["", None])
def test_a_template_without_calls_or_tools_is_refused(content):
    encoder = Encoder(tokenizer_of("chatml"))
    message = {**CALLED, "content": content}
    with pytest.raises(DataError, match=r"line 7: turn 2 .*tool_calls\[0\]\.function\.name.*templ"):
        encoder.encode(read({"messages": [USER, message]}))
    with pytest.raises(DataError, match=r"line 7: tools\[0\]\.function\.name: .*--chat-template"):
        encoder.checked(read({"messages": [USER, REPLY], "tools": [TOOL]}))


def test_older_forms_of_calls():
    legacy = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    result = {"role": "function", "name": "get_weather", "content": "rain"}
    example = read({"messages": [USER, legacy, result, REPLY], "functions": [TOOL["function"]]})
    assert example.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert example.messages[2] == {**result, "role": "tool"}
    assert example.tools == (TOOL,)
    sharegpt = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "a"},
    ]
    example = read({"conversations": sharegpt, "tools": json.dumps([TOOL])})
    assert [m["role"] for m in example.messages] == ["user", "assistant", "tool"]
    assert example.messages[1]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.found
def test_turns_before_the_last_of_a_completion_are_learnt_too():
    last = {"role": "assistant", "content": "b"}
    row = {"prompt": [USER, REPLY, USER], "completion": [REPLY, USER, last]}
    assert learnt(row) == "a<|im_end|>b<|im_end|>"
    thanks = {"role": "user", "content": "thanks!"}
    with pytest.raises(DataError, match="line 7: completion: the last turn is of the user"):
        read({"prompt": [USER], "completion": [REPLY, thanks]})


@pytest.mark.found
def test_weights_choose_the_turns_that_are_learnt():
    def chat(*weights):
        turns = [{**REPLY, "content": f"a{n}", **more} for n, more in enumerate(weights)]
        return {"messages": [message for turn in turns for message in (USER, turn)]}

    assert learnt(chat({}, {"weight": 0})) == "a0<|im_end|>"
    assert learnt(chat({"weight": 0}, {"weight": 1})) == "a1<|im_end|>"
    assert learnt(chat({"train": False}, {}, {"training": False})) == "a1<|im_end|>"
    assert learnt(chat({}, {}, {"weight": 0.0})) == "a0<|im_end|>a1<|im_end|>"
    assert learnt(chat({}, {}, {"weight": None}), learn="last") == "a2<|im_end|>"


@pytest.mark.found
def test_thoughts_and_the_system_column_are_kept():
    thinking = {**REPLY, "thinking": "so"}
    row = {"messages": [USER, thinking], "system": "s"}
    assert learnt(row) == "<think>so</think>\na<|im_end|>"
    assert read(row).messages[0] == {"role": "system", "content": "s"}
    assert read(row).answer == "a"
    with pytest.raises(DataError, match=r"line 7: turn 3 .*reasoning_content"):
        learnt(row, "chatml")
    history = {"instruction": "i", "output": "b", "history": [["q", "a"]], "system": "s"}
    assert learnt(history) == "a<|im_end|>b<|im_end|>"


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "q", "answer": "4"}, "4"),
        ({"prompt": [USER], "solution": "s", "level": 3}, "s"),
        ({"prompt": "q", "ground_truth": 7}, "7"),
        ({"prompt": "q"}, ""),
    ],
)
def test_prompts_without_a_completion(row, answer):
    example = read(row)
    assert (example.messages[-1]["content"], example.answer) == ("q", answer)
    assert example.columns == row


def test_a_prompt_alone_cannot_be_learnt():
    with pytest.raises(DataError, match="line 7: the row has no completion"):
        learnt({"prompt": "q"})


def assistant(**fields):
    return {"messages": [USER, {**REPLY, **fields}]}


@pytest.mark.found
@pytest.mark.parametrize(
    ("row", "part"),
    [
        # Rows.
        ({}, r"\(none\)"),
        ({"question": "q", "answer": "a"}, r"\?prompt=question&completion=answer"),
        ({"messages": []}, "messages"),
        ({"messages": [USER]}, "messages: the last turn is of the user"),
        ({"messages": [REPLY]}, "messages: the assistant answers no turn"),
        ({"messages": "no"}, "messages: not JSON"),
        ({"messages": [USER, "a"]}, r"messages\[1\]"),
        ({"messages": [USER, REPLY], "images": ["x.png"]}, "images"),
        ({"messages": [USER, REPLY], "tools": "no"}, "tools: not JSON"),
        ({"messages": [USER, REPLY], "tools": [{"type": "function"}]}, r"tools\[0\]"),
        ({"messages": [USER, REPLY], "tools": [{**TOOL, "type": "mcp"}]}, r"tools\[0\]\.type"),
        ({"messages": [USER, REPLY], "chat_template_kwargs": {"tools": []}}, "chat_template_kw"),
        ({"messages": [{"role": "system", "content": "t"}, USER, REPLY], "system": "s"}, "system"),
        ({"prompt": "q", "completion": ""}, "completion: empty"),
        ({"prompt": "q", "completion": "a", "label": False}, "label: false"),
        (
            {"prompt": "q", "completion": [USER, REPLY]},
            "completion: begins with a turn of the user",
        ),
        ({"prompt": "q", "completion": " \u2028"}, "completion: empty"),
        ({"prompt": "q", "completion": 3}, "completion"),
        ({"prompt": [USER, REPLY], "completion": [REPLY]}, "prompt: ends with the assistant"),
        ({"prompt": [USER, REPLY]}, "prompt: ends with the assistant"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen: equal"),
        ({"chosen": "a", "rejected": "b"}, "prompt: missing"),
        ({"chosen": [REPLY], "rejected": [{**REPLY, "content": "b"}]}, "chosen"),
        ({"prompt": "q", "chosen": [], "rejected": [REPLY]}, "chosen"),
        ({"instruction": "i", "output": ""}, "output: empty"),
        ({"instruction": "i", "output": "a", "history": [["q"]]}, r"history\[0\]"),
        ({"text": ""}, "text: empty"),
        # Turns.
        ({"messages": [{"role": "human", "content": "q"}, REPLY]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "User", "content": "q"}, REPLY]}, r"messages\[0\]\.role"),
        ({"messages": [{"content": "q"}, REPLY]}, r"messages\[0\]\.role: null"),
        ({"conversations": [{"from": "alien", "value": "q"}, REPLY]}, r"conversations\[0\]\.from"),
        (assistant(content=None), r"messages\[1\]\.content: null"),
        (assistant(content=""), "messages: the answer .* is empty"),
        (assistant(content=" ", reasoning_content="t"), "messages: the answer .* is empty"),
        (assistant(content=3), r"messages\[1\]\.content"),
        (assistant(content=[{"type": "image_url"}]), r"messages\[1\]\.content\[0\]"),
        (assistant(content=["a"]), r"messages\[1\]\.content\[0\]"),
        (assistant(content="\ud83d"), r"messages\[1\]\.content: character 1 .*\\ud83d"),
        (assistant(weight=0), "messages: every assistant turn has weight 0"),
        (assistant(weight=0.5), r"messages\[1\]\.weight: 0\.5"),
        (assistant(weight="1"), r"messages\[1\]\.weight"),
        (assistant(train=True, weight=0), r"messages\[1\]: .*differ"),
        (assistant(prefix=True), r"messages\[1\]\.prefix"),
        (assistant(refusal="no"), r"messages\[1\]\.refusal"),
        (assistant(audio={"id": "x"}), r"messages\[1\]\.audio"),
        (assistant(tool_call=[CALL]), r"messages\[1\]\.tool_call: unknown field; tool_calls"),
        # Of a misspelled weight, 0 and false are those that count.
        *(
            (assistant(**{name: value}), rf"messages\[1\]\.{name}: unknown field; {meant}")
            for name, meant in (("weights", "weight"), ("Weight", "weight"), ("Train", "train"))
            for value in (0, False, 1)
        ),
        (assistant(loss=False), "messages: every assistant turn has weight 0"),
        *(
            ({"messages": [{"role": "system", "content": "s", name: [CALL]}, USER, REPLY]}, message)
            for name, message in (
                ("tools", r"messages\[0\]\.tools: cannot be kept; .* column tools"),
                ("functions", r"messages\[0\]\.functions: cannot be kept; .* column tools"),
            )
        ),
        (assistant(reasoning_content="t", thinking="u"), r"messages\[1\]: .*differ"),
        ({"messages": [{**USER, "train": True}, REPLY]}, r"messages\[0\]\.train"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, REPLY]}, r"messages\[0\]\.tool_calls"),
        ({"messages": [{**USER, "thinking": "t"}, REPLY]}, r"messages\[0\]\.reasoning_content"),
        # Calls.
        (assistant(tool_calls="no"), r"messages\[1\]\.tool_calls: not JSON"),
        (assistant(tool_calls=[{"id": "c"}]), r"messages\[1\]\.tool_calls\[0\]"),
        (assistant(tool_calls=[{**CALL, "type": "custom"}]), r"tool_calls\[0\]\.type"),
        (assistant(tool_calls=[CALL, CALL]), r"messages\[1\]\.tool_calls: two calls"),
        *(
            (
                assistant(tool_calls=[{"function": {"name": "f", "arguments": given}}]),
                r"messages\[1\]\.tool_calls\[0\]\.function\.arguments",
            )
            for given in ("{", "", "[]", '"x"', "3", '{"a": NaN}', '{"a": 1, "a": 2}', [], None, 3)
        ),
        ({"messages": [USER, CALLED, {**ANSWERED, "tool_call_id": "c2"}, REPLY]}, r"messages\[2\]"),
        ({"messages": [USER, CALLED, ANSWERED, ANSWERED, REPLY]}, r"messages\[3\]"),
        ({"messages": [USER, BOTH, ANSWERED, REPLY]}, r"messages\[3\].*get_time is not"),
        ({"messages": [{"role": "Assistant"}, REPLY]}, r"messages\[0\]\.role.*write assistant"),
        ({"conversations": [{"from": "Human", "value": "q"}, REPLY]}, r"\.from.*write human"),
        ({"prompt": "q", "completion": 5}, "completion: expected text or a list .* not 5"),
        ({"messages": [USER, ANSWERED, REPLY]}, r"messages\[1\]\.tool_call_id"),
        ({"messages": [USER, {"role": "tool", "content": "r"}, REPLY]}, r"messages\[1\]\.role"),
        (
            {"messages": [USER, CALLED, {**ANSWERED, "content": None}, REPLY]},
            r"messages\[2\]\.cont",
        ),
    ],
)
def test_rows_that_are_refused_by_row_and_field(row, part):
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: (columns )?.*{part}") as caught:
        read(row)
    assert "\n" not in str(caught.value)


def test_ordinary_columns_and_fields_are_kept_and_change_nothing():
    row = {"messages": [{**USER, "id": 5, "lang": "en"}, REPLY], "source": "web", "score": 0.5}
    assert learnt(row) == "a<|im_end|>"
    assert read(row).columns == row
    assert read(row).key == read({"messages": [USER, REPLY]}).key


def test_the_row_itself_is_left_as_it_is():
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    before = json.dumps(row)
    read(row)
    assert json.dumps(row) == before


@pytest.mark.found
@pytest.mark.parametrize("key", ["tool_call_id", "name"])
def test_answers_to_calls_are_in_the_order_of_the_calls(key):
    """A template that writes no ids shows by the place of an answer what it answers."""
    first = {"role": "tool", "content": "rain", key: CALL["id"]}
    second = {"role": "tool", "content": "noon", key: SECOND["id"]}
    called = BOTH
    if key == "name":
        called = {**BOTH, "tool_calls": [{"function": c["function"]} for c in (CALL, SECOND)]}
        first["name"], second["name"] = "get_weather", "get_time"
    contents = [
        [m["content"] for m in read({"messages": [USER, called, *order, REPLY]}).messages]
        for order in ([first, second], [second, first])
    ]
    assert contents == [["q", "", "rain", "noon"]] * 2


@pytest.mark.found
def test_an_empty_instruction_puts_nothing_before_the_input():
    row = {"instruction": "", "input": "1, 2", "output": "3"}
    assert read(row).messages[-1]["content"] == "1, 2"
