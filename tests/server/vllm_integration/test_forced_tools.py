"""Forced tools: in every spelling, their arguments are an object that fits the tool's schema."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import xgrammar
from bmt_server.vllm_integration.forced_tools import apply_structural_tag
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.parser.abstract_parser import DelegatingParser
from vllm.parser.parser_manager import ParserManager

from tests.support.tiny_model import byte_tokenizer

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
FITS, BARE, OTHER = '{"city": "Rome"}', '"fjerde"', '{"town": 5}'
ASKED = [{"role": "user", "content": "x"}]
START = '<tool_call>\n{"name": "pick", "arguments": '


def chat(choice: Any, parameters: Any, **more: Any) -> Any:
    function = {"name": "pick", **more}
    if parameters is not None:
        function["parameters"] = parameters
    tools = [{"type": "function", "function": function}]
    return ChatCompletionRequest(model="m", messages=ASKED, tools=tools, tool_choice=choice)


def responses(choice: Any, parameters: Any, **more: Any) -> Any:
    tool = {"type": "function", "name": "pick", "parameters": parameters, "strict": None, **more}
    return ResponsesRequest(model="m", input="x", tools=[tool], tool_choice=choice)


def messages(choice: Any, parameters: Any, **more: Any) -> Any:
    tool = {"name": "pick", "input_schema": parameters or {"type": "object"}, **more}
    asked = AnthropicMessagesRequest(
        model="m", messages=ASKED, max_tokens=9, tools=[tool], tool_choice=choice
    )
    return AnthropicServingMessages.to_chat_completion_request(asked)


FORCED = [
    pytest.param(chat, "required", id="chat, required"),
    pytest.param(chat, {"type": "function", "function": {"name": "pick"}}, id="chat, named"),
    pytest.param(responses, "required", id="responses, required"),
    pytest.param(responses, {"type": "function", "name": "pick"}, id="responses, named"),
    pytest.param(messages, {"type": "any"}, id="messages, any"),
    pytest.param(messages, {"type": "tool", "name": "pick"}, id="messages, named"),
]


@pytest.fixture(scope="module")
def compiler():
    return xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(byte_tokenizer(), vocab_size=259)
    )


@pytest.fixture
def adjust(monkeypatch):
    """Parse tools of a request as a server does, with the change to vLLM."""
    original = DelegatingParser._apply_structural_tag
    monkeypatch.setattr(
        DelegatingParser,
        "_apply_structural_tag",
        lambda self, request: apply_structural_tag(original, self, request),
    )

    def run(request: Any, name: str = "hermes") -> Any:
        made = ParserManager.get_parser(name, enable_auto_tools=True, tokenizer=byte_tokenizer())
        assert made is not None
        return made(byte_tokenizer(), request.tools).adjust_request(request)

    return run


def takes(compiler: Any, request: Any, arguments: str) -> bool:
    """True if the grammar of an adjusted request allows a call with these arguments."""
    tag = request.structured_outputs.structural_tag
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))
    return matcher.accept_string(START) and matcher.accept_string(arguments + "}")


@pytest.mark.found
@pytest.mark.parametrize(("route", "choice"), FORCED)
def test_forced_arguments_fit_the_schema(adjust, compiler, route, choice):
    allows = partial(takes, compiler, adjust(route(choice, CITY)))
    assert allows(FITS)
    assert not allows(BARE)
    assert not allows(OTHER)


@pytest.mark.parametrize("parameters", [None, {}, {"description": "none"}])
@pytest.mark.parametrize(("route", "choice"), FORCED)
def test_arguments_without_a_schema_are_an_object(adjust, compiler, route, choice, parameters):
    allows = partial(takes, compiler, adjust(route(choice, parameters)))
    assert allows("{}")
    assert allows(OTHER)
    assert not allows(BARE)


@pytest.mark.parametrize(("route", "choice"), FORCED)
def test_a_tool_may_say_that_its_arguments_are_free(adjust, compiler, route, choice):
    assert takes(compiler, adjust(route(choice, CITY, strict=False)), OTHER)


@pytest.mark.parametrize(
    ("route", "choice"), [(chat, "auto"), (responses, "auto"), (messages, {"type": "auto"})]
)
def test_calls_of_the_models_choice_have_no_grammar(adjust, route, choice):
    assert adjust(route(choice, CITY)).structured_outputs is None


@pytest.mark.parametrize(("route", "choice"), FORCED)
def test_the_template_sees_the_requests_own_tools(adjust, route, choice):
    request = route(choice, CITY)
    before = [tool.model_dump() for tool in request.tools]
    assert [tool.model_dump() for tool in adjust(request).tools] == before
