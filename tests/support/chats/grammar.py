"""Chats drawn from a grammar, with an account of what each must teach or why it is refused.

The account is written from the grammar's choices alone; it does not read the code under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.chats.templates import Family

# Characters at which some reader of lines splits.
SEPARATORS = (
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
)
_WORDS = (
    *(
        "a",
        "Oslo?",
        "3.14",
        "é",
        "日本",
        "🙂",
        "{{ x }}",
        "{% y %}",
        '"q"',
        "\\n",
        "<think>",
        "a b",
    ),
    *("</tool_call>", "assistant", "USER: ", "\u200b", "0", "null", "def f(x):\n    return x"),
)
# Prompts that occur again and again.
_REPEATED = ("Hi", "q", " Weather in Oslo? ")
_FUNCTION = {"name": "get", "description": "Get it", "parameters": {"type": "object"}}
_FUNCTION["parameters"] = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": _FUNCTION}]


@dataclass
class Draw:
    """A row and its account.

    learnt: the texts of the turns that may be learnt, in order; refused: parts of the messages of
    which one must stand in the error, if the row is to be refused.
    """

    row: dict[str, Any]
    learnt: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def text(random: Random) -> str:
    """A text with any white space at its ends and any line separator within."""
    edge = ("", "", "", " ", "\t", *SEPARATORS)
    words = random.choices(_WORDS, k=random.randint(1, 3))
    joined = random.choice((*SEPARATORS, " ", " ", "")).join(words)
    return random.choice(edge) + joined + random.choice(edge)


def _content(random: Random, value: str) -> Any:
    """Text as it is, or as parts."""
    if random.random() < 0.8:
        return value
    cut = random.randint(0, len(value))
    return [{"type": "text", "text": value[:cut]}, {"type": "text", "text": value[cut:]}]


def draw(random: Random, family: Family, learn: str) -> Draw:
    """A row of `messages` for a family's template, under the setting `learn`."""
    made = Draw({})
    messages: list[dict[str, Any]] = []
    spoken: list[tuple[int, str]] = []  # position and text of turns that may be learnt
    blank: set[int] = set()
    thoughtful: set[int] = set()
    rare = random.random() < 0.25  # rows with a fault, mostly one

    def fault(share: float) -> bool:
        return rare and random.random() < share

    def refuse(part: str) -> None:
        made.refused.append(part)

    if random.random() < 0.25:
        messages.append({"role": "system", "content": text(random)})
        if "system" not in family.takes:
            refuse("system")
    if tools := "tools" in family.takes and random.random() < 0.5:
        made.row["tools"] = json.dumps(TOOLS) if random.random() < 0.5 else TOOLS
    if not tools and fault(0.1):
        made.row["tools"] = TOOLS
        if "tools" not in family.takes:
            refuse("tools")
    for _ in range(random.randint(1, 3)):
        asked = random.choice(_REPEATED) if random.random() < 0.4 else text(random)
        if fault(0.1):
            asked += "\ud83d"
            refuse(f"messages[{len(messages)}].content")
        messages.append({"role": "user", "content": _content(random, asked)})
        if fault(0.08):
            messages[-1]["role"] = random.choice(("human", "bot", "User", None, 3))
            refuse(f"messages[{len(messages) - 1}].role")
        if tools and random.random() < 0.5:
            _call(random, messages, spoken, made, fault)
        _answer(random, family, messages, spoken, blank, thoughtful, made, fault)
    if fault(0.1):
        messages.append({"role": "user", "content": "thanks!"})
        refuse("last turn is of the user")
    made.row["messages"] = messages
    chosen = spoken if learn == "all" else spoken[-1:]
    if not spoken:
        refuse("weight 0")
    for at, said in chosen:
        if at in blank:
            refuse("empty")
        elif at in thoughtful and "thoughts" not in family.takes:
            refuse("reasoning_content")
        elif family.end in said:
            refuse("end of a turn")
    made.learnt = [said for _, said in chosen]
    return made


def _weight(random: Random, message: dict[str, Any], made: Draw, at: int, odd: bool) -> bool:
    """Give the turn a weight, perhaps; True if it may be learnt."""
    if odd:
        message["weight"] = random.choice((0.5, 2, -1, "1", [1]))
        made.refused.append(f"messages[{at}].weight")
        return True
    if random.random() < 0.75:
        return True
    on = random.random() < 0.4
    key = random.choice(("weight", "train", "training"))
    message[key] = on if key != "weight" else random.choice((int(on), float(on)))
    return on


def _call(random: Random, messages: list[Any], spoken: list[Any], made: Draw, fault: Any) -> None:
    """The assistant's calls, and a tool's turn for each."""
    at, calls, written = len(messages), [], ""
    named = random.random() < 0.7
    for number in range(random.randint(1, 2)):
        arguments: Any = {"city": text(random), "n": random.choice((1, None, True, [1.5]))}
        function = {"name": "get", "arguments": arguments}
        # As the templates of this module write it: Jinja's tojson, and not escaped.
        written += f"<tool_call>{json.dumps(function, ensure_ascii=False)}</tool_call>"
        given: Any = json.dumps(arguments) if random.random() < 0.6 else arguments
        if fault(0.1):
            given = random.choice(("{", "[1]", '"x"', "NaN", '{"a": 1, "a": 2}', 3))
            made.refused.append(f"messages[{at}].tool_calls[{number}].function.arguments")
        call: dict[str, Any] = {
            "type": "function",
            "function": {"name": "get", "arguments": given},
        }
        if named:
            call["id"] = f"call{number}"
        calls.append(call)
    message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
    if random.random() < 0.7:
        message["content"] = random.choice((None, ""))
    if _weight(random, message, made, at, fault(0.05)):
        spoken.append((at, written))
    messages.append(message)
    for number in range(len(calls)):
        turn = {"role": "tool", "content": text(random)}
        if named and random.random() < 0.8:
            turn["tool_call_id"] = f"call{number}"
        messages.append(turn)
    if fault(0.1):
        made.refused.append(f"messages[{len(messages)}].")
        messages.append({"role": "tool", "content": "r", "tool_call_id": "other"})


def _answer(
    random: Random,
    family: Family,
    messages: list[Any],
    spoken: list[Any],
    blank: set[int],
    thoughtful: set[int],
    made: Draw,
    fault: Any,
) -> None:
    at, said = len(messages), text(random)
    if random.random() < 0.05:
        said += family.end
    if fault(0.1):
        said = random.choice(("", " ", "\u2028\n"))
    message: dict[str, Any] = {"role": "assistant", "content": _content(random, said)}
    if not said.strip():
        blank.add(at)
    if fault(0.08):
        message["content"] = None
        made.refused.append(f"messages[{at}].content")
    elif fault(0.08):
        message["content"] = [{"type": "image_url", "image_url": {"url": "x"}}]
        made.refused.append(f"messages[{at}].content[0]")
    written = said.strip() if family.trims else said
    if random.random() < (0.3 if "thoughts" in family.takes else 0.02):
        thought = text(random).replace(family.end, "")
        message[random.choice(("reasoning_content", "thinking"))] = thought
        written = f"<think>{thought}</think>\n{written}"
        thoughtful.add(at)
    if _weight(random, message, made, at, fault(0.05)):
        spoken.append((at, written))
    messages.append(message)
