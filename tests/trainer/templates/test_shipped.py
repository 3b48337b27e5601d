"""The shipped chat template: its rendering, and answers read back by TRL and by vLLM."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random

import pytest
from bmt_trainer.templates import shipped
from transformers import AutoTokenizer
from trl.chat_template_utils import (
    is_chat_template_prefix_preserving,
    parse_response,
    supports_tool_calling,
)

from tests.support.tiny_model import byte_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
USER = {"role": "user", "content": "Weather?"}
# Text that a template might strip, escape or take for its own.
CONTENTS = ("", "a", " a\n", '"é" & <b>\u2028\u0085', "{{ x }} {% y %}", "</tool_call>", "<think>")


def call(name, arguments):
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(*calls, content=None, **more):
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


@pytest.fixture(scope="module")
def tokenizer():
    made = byte_tokenizer()
    made.chat_template = shipped.text_of("tools")
    made.response_template = shipped.response_template(made.chat_template)
    return made


def rendered(tokenizer, messages, tools=TOOLS, prompt=False):
    return tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt
    )


def answer(tokenizer, message, tools=TOOLS):
    """The text of an assistant's turn after its prompt, and the prompt."""
    before = rendered(tokenizer, [USER], tools, prompt=True)
    whole = rendered(tokenizer, [USER, message], tools)
    assert whole.startswith(before)
    return whole.removeprefix(before), before


def read(tokenizer, message):
    """An assistant's turn, rendered and read back as TRL does."""
    text, before = answer(tokenizer, message)
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, before)]
    return parse_response(tokenizer, ids[0], prefix=ids[1], tools=TOOLS)


def test_plain_chats_are_rendered_as_by_smollm2_itself(smol):
    tokenizer = AutoTokenizer.from_pretrained(smol)
    own, ours = tokenizer.chat_template, shipped.text_of("tools")
    draw = random.Random(0)
    for _ in range(300):
        roles = [draw.choice(("system", "user", "assistant", "developer")) for _ in range(4)]
        chat = [{"role": r, "content": draw.choice(CONTENTS)} for r in roles[: draw.randint(1, 4)]]
        for prompt in (True, False):
            texts = [
                tokenizer.apply_chat_template(
                    chat, chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
                for template in (own, ours)
            ]
            assert texts[0] == texts[1]


def test_functions_are_described_once_as_servers_pass_them_on(tokenizer):
    for chat in ([USER], [{"role": "system", "content": "S"}, USER], [USER, turn(content="x")]):
        text = rendered(tokenizer, chat)
        assert text.count("<tools>") == 1
        described = text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
        assert [json.loads(line) for line in described] == [t["function"] for t in TOOLS]
        # vLLM fills in what is missing, and drops what it does not know.
        sent = [
            {"type": "function", "function": {"description": None, "parameters": None, **f}}
            for f in ({**t["function"], "return": {"type": "string"}} for t in TOOLS)
        ]
        assert rendered(tokenizer, chat, sent) == text
        assert rendered(tokenizer, chat, [t["function"] for t in TOOLS]) == text
    assert "<tools>" not in rendered(tokenizer, [USER], tools=[])


def test_a_longer_chat_begins_with_the_rendering_of_a_shorter_one(tokenizer):
    chat = [
        USER,
        turn(call("get_weather", {"city": "Oslo"}), call("now", {}), reasoning_content="hm"),
        {"role": "tool", "content": "5", "tool_call_id": "c"},
        {"role": "tool", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
        {"role": "assistant", "content": "5 degrees", "reasoning_content": "so"},
        USER,
    ]
    texts = [rendered(tokenizer, chat[: n + 1]) for n in range(len(chat))]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(texts))
    assert "<tool_response>\n12\n</tool_response>" in texts[-1]
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)


@pytest.mark.parametrize("content", [None, "", "Let me look."])
@pytest.mark.parametrize("thoughts", [None, "The user asks."])
def test_calls_are_read_back_by_trl(tokenizer, content, thoughts):
    values = [{}, {"city": "Zürich", "n": 1, "deep": {"list": [True, None, 0.5], "q": '"\n\\'}}]
    for count in (1, 2, 3):
        calls = [call(f"f{n}", values[n % 2]) for n in range(count)]
        message = turn(*calls, content=content, reasoning_content=thoughts)
        back = read(tokenizer, message)
        found = [c["function"] for c in back["tool_calls"]]
        assert found == [c["function"] for c in calls]
        assert back["content"] == (content or "")
        assert back.get("reasoning_content") == thoughts


def test_arguments_as_a_string_are_written_as_they_are(tokenizer):
    text, _ = answer(tokenizer, turn(call("f", '{"a":1}')))
    assert '"arguments": {"a":1}}' in text
    assert read(tokenizer, turn(call("f", '{"a":1}')))["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": {"a": 1},
    }


@pytest.mark.parametrize(
    "text", ["<tool_call>{bad</tool_call>", '<tool_call>{"name": 1}</tool_call>', "no call"]
)
def test_an_answer_without_a_call_is_read_as_text(tokenizer, text):
    ids = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    back = parse_response(tokenizer, ids, prefix=[], tools=TOOLS)
    assert "tool_calls" not in back
    assert back["content"] == text


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_calls_are_read_back_by_vllm(tokenizer):
    from vllm.renderers.hf import _detect_content_format
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    calls = [call("get_weather", {"city": "Zürich"}), call("now", {})]
    text, _ = answer(tokenizer, turn(*calls, content="Let me look."))
    found = Hermes2ProToolParser(tokenizer).extract_tool_calls(text, None)
    assert [(c.function.name, json.loads(c.function.arguments)) for c in found.tool_calls] == [
        (c["function"]["name"], c["function"]["arguments"]) for c in calls
    ]
    assert found.content.strip() == "Let me look."
    # Parts of a message reach the template as they are, not joined by newlines.
    assert _detect_content_format(tokenizer.chat_template, default="string") == "openai"


def test_other_templates_are_not_read_by_a_shipped_one():
    assert shipped.NAMES == ("tools",)
    assert shipped.path_of("tools").is_file()
    assert shipped.response_template(byte_tokenizer().chat_template) is None
