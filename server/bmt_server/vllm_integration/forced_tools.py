"""Tools that a request forces: their arguments are an object that fits the tool's schema.

vLLM constrains the arguments of a forced tool only if the tool says `strict`, or if the
server runs with `--tool-strict-level parameter`, which also constrains calls that are the model's
choice. Small models answer a forced call without constraint by a bare string. Here only forced
calls are constrained, and a tool's own `strict: false` still frees it.
"""

from __future__ import annotations

from typing import Any

from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

# A schema with one of these says itself which values it takes.
_SAY_A_TYPE = ("type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "not")


def apply_structural_tag(original: Any, parser: Any, request: Any) -> Any:
    """Build the structural tag of a request, with the tools pinned if the request forces one.

    original: `DelegatingParser._apply_structural_tag` (vLLM's `parser/abstract_parser.py`);
    chat, Responses and Messages reach it. The request's own tools, which the chat template shows,
    stay as they are.
    """
    if not request.tools or request.tool_choice in ("auto", "none", None):
        return original(parser, request)
    tools = request.tools
    if not any(_function(tool).strict is False for tool in tools if _has_schema(tool)):
        parser.tool_strict_level = ToolStrictLevel.PARAMETER
    request.tools = [_pinned(tool) for tool in tools]
    try:
        return original(parser, request)
    finally:
        request.tools = tools


def _function(tool: Any) -> Any:
    """Name, parameters and `strict` of a tool: chat has them in an object of their own."""
    return getattr(tool, "function", tool)


def _has_schema(tool: Any) -> bool:
    return tool.type == "function" and hasattr(_function(tool), "parameters")


def _pinned(tool: Any) -> Any:
    """A copy of a tool that is strict unless it says otherwise, with an object as its arguments."""
    if not _has_schema(tool):
        return tool
    function = _function(tool)
    parameters = function.parameters or {}
    if not any(keyword in parameters for keyword in _SAY_A_TYPE):
        parameters = {**parameters, "type": "object"}
    changes = {"parameters": parameters, "strict": function.strict is not False}
    pinned = function.model_copy(update=changes)
    return pinned if function is tool else tool.model_copy(update={"function": pinned})
