"""Generated requests that one function call answers: rows in OpenAI's form, by seed.

The values of arguments stand in the request, so that a right call can be known; each row describes
two functions, of which one fits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CITIES = ["Oslo", "Lima", "Cairo", "Paris", "Tokyo", "Quito", "Delhi", "Turin", "Dakar", "Accra"]
_CITIES += [
    "Sofia",
    "Perth",
    "Osaka",
    "Leeds",
    "Basel",
    "Davao",
    "Hanoi",
    "Minsk",
    "Milan",
    "Tunis",
]
_NAMES = ["Ada", "Ben", "Carla", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jules", "Kofi"]
_CODES = ["EUR", "JPY", "GBP", "CHF", "NOK", "INR", "PLN", "BRL", "CAD", "MXN"]
_SONGS = ["Blue River", "Night Train", "Golden Hour", "Paper Moon", "Silver Lining", "Cold Coffee"]
_SONGS += ["Summer Rain", "Open Road", "Quiet City", "Wild Honey", "Last Dance", "Green Hills"]
_TEXTS = ["I am late", "the meeting is at noon", "dinner is ready", "the train was missed"]
_TEXTS += ["I found the keys", "the parcel is here", "we won the game", "the printer is broken"]


@dataclass(frozen=True)
class Function:
    """A function: types of its parameters, a description, values by chance, and requests."""

    parameters: Mapping[str, str]
    description: str
    values: Callable[[random.Random], dict[str, Any]]
    requests: tuple[str, ...]

    def schema(self, name: str) -> dict[str, Any]:
        """The function as an entry of a row's `tools`."""
        properties = {key: {"type": kind} for key, kind in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": [*self.parameters]}
        function = {"name": name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _song(draw: random.Random) -> dict[str, Any]:
    return {"title": draw.choice(_SONGS), "repeat": draw.random() < 0.5}


FUNCTIONS: Mapping[str, Function] = {
    "get_weather": Function(
        {"city": "string", "days": "integer"},
        "Weather of the next days",
        lambda draw: {"city": draw.choice(_CITIES), "days": draw.randint(2, 9)},
        (
            "What will the weather be like in {city} over the next {days} days?",
            "I am in {city} for {days} days. Will it rain?",
            "Give me the forecast of {days} days for {city}.",
        ),
    ),
    "convert_money": Function(
        {"amount": "number", "currency": "string"},
        "Dollars in another currency",
        lambda draw: {"amount": draw.randint(10, 9990) / 10, "currency": draw.choice(_CODES)},
        (
            "How much is {amount} dollars in {currency}?",
            "Convert {amount} dollars to {currency}.",
            "I have {amount} dollars and need {currency}. How much do I get?",
        ),
    ),
    "set_alarm": Function(
        {"hour": "integer", "minute": "integer"},
        "Set an alarm, 0 to 23 hours",
        lambda draw: {"hour": draw.randint(0, 23), "minute": draw.randint(10, 59)},
        ("Wake me at {hour}:{minute}.", "Set an alarm for {hour}:{minute}, please."),
    ),
    "send_message": Function(
        {"to": "string", "text": "string"},
        "Send a text message",
        lambda draw: {"to": draw.choice(_NAMES), "text": draw.choice(_TEXTS)},
        ("Write to {to}: {text}", 'Send {to} the message "{text}".'),
    ),
    "play_song": Function(
        {"title": "string", "repeat": "boolean"},
        "Play a song, once or on repeat",
        _song,
        ("Play {title} {how}.", "I want to hear {title} {how}."),
    ),
}


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` rows of `messages` and `tools`; the call's turn has no content. No request twice."""
    draw, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        name, other = draw.sample(sorted(FUNCTIONS), 2)
        function = FUNCTIONS[name]
        arguments = function.values(draw)
        how = "on repeat" if arguments.get("repeat") else "once"
        request = draw.choice(function.requests).format(**arguments, how=how)
        if request in seen:
            continue
        seen.add(request)
        tools = [FUNCTIONS[n].schema(n) for n in draw.sample([name, other], 2)]
        called = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call_{len(seen)}", "type": "function", "function": called}
        yield {
            "messages": [
                {"role": "user", "content": request},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
            "tools": tools,
        }


def write(path: Path, count: int, seed: int) -> None:
    """Write the rows as a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))
