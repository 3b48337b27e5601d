"""Rows of files for fine-tuning from one grammar: right ones, and each with faults of any field.

Every field takes, now and then, a value that another field or another form has, so that what one
validator reads and the other does not is found whichever of them it is.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TEXTS = st.sampled_from(["5", "a b", "", " ", "\n", "é\u2028", "null", "{}"])
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", 0, 1, True, False, 1.0, [], {}, "x", ["x"], {"a": 1}, [None], 2**70, "\ud800"]
)
ARGUMENTS = st.sampled_from(
    ['{"a": 1}', "{}", "", "[]", "x", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": 1, "a": 2}', "null"]
    + ['{"a": 1e999}', '"{}"', " {} "]
)
IDS = st.sampled_from(["c1", "c2", ""])


def _often(value: Any, odd: st.SearchStrategy[Any] = ODD) -> st.SearchStrategy[Any]:
    usual = value if isinstance(value, st.SearchStrategy) else st.just(value)
    return st.integers(0, 99).flatmap(lambda n: odd if n == 37 else usual)


def _maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


PARTS = st.lists(
    _often(st.fixed_dictionaries({"type": _often("text"), "text": _often(TEXTS)})), max_size=2
)
CALL = _often(
    st.builds(
        lambda more, function: {**more, "function": function},
        _maybe(id=_often(IDS), type=_often("function")),
        _often(st.fixed_dictionaries({"name": _often("f"), "arguments": _often(ARGUMENTS)})),
    )
)
TOOL = _often(
    st.builds(
        lambda more, function: {**more, "function": function},
        _maybe(type=_often("function"), strict=_often(True)),
        _often(
            st.builds(
                dict,
                _maybe(description=_often(TEXTS), parameters=_often({"type": "object"})),
                name=_often("f"),
            )
        ),
    )
)
TOOLS = _often(st.lists(TOOL, max_size=2))


def _message(role: str) -> st.SearchStrategy[Any]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    if role == "assistant":
        fields |= {
            "weight": _often(st.sampled_from([0, 1])),
            "tool_calls": _often(st.lists(CALL, min_size=1, max_size=2)),
            "reasoning_content": _often(TEXTS),
        }
    rare = st.sampled_from(["name", "refusal", "weight", "tool_call_id", "reasoning_content"])
    rare |= st.sampled_from(["tool_calls", "content_type", "prefix", "function_call", "train"])
    return st.builds(
        lambda some, more, key, value, n: {
            **({key: value} if n == 7 else {}),
            **more,
            **some,
            "role": role,
        },
        st.fixed_dictionaries(
            {"content": _often(TEXTS | PARTS)}
            | ({"tool_call_id": _often(IDS)} if role == "tool" else {})
        ),
        _maybe(**fields),
        rare,
        ODD | TEXTS,
        st.integers(0, 29),
    )


ROLES = st.sampled_from(["user", "user", "assistant", "system", "developer", "tool"])
MESSAGES = _often(st.lists(ROLES.flatmap(_message), max_size=4))
USERS = _message("user")
ASSISTANTS = _message("assistant")


def _ending(last: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _often(st.builds(lambda before, end: [*before, end], MESSAGES.filter(_is_list), last))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _with(row: st.SearchStrategy[Any], name: str) -> st.SearchStrategy[Any]:
    more = _maybe(**{name: TOOLS, "parallel_tool_calls": _often(True)})
    return st.builds(lambda some, rest: {**some, **rest}, row, more)


SUPERVISED = _with(st.fixed_dictionaries({"messages": _ending(ASSISTANTS)}), "tools")
REINFORCEMENT = st.builds(
    lambda row, more: {**more, **row},
    _with(st.fixed_dictionaries({"messages": _ending(USERS)}), "tools"),
    _maybe(answer=ODD, images=ODD, prompt=ODD, completion=ODD, chosen=ODD, input_ids=ODD),
)
_ONE = _often(st.lists(ASSISTANTS, min_size=1, max_size=1))
PAIR = st.fixed_dictionaries(
    {
        "input": _often(_with(st.fixed_dictionaries({"messages": _ending(USERS)}), "tools")),
        "preferred_output": _ONE,
        "non_preferred_output": _ONE,
    }
)
ROWS = SUPERVISED | PAIR | REINFORCEMENT
