"""An environment for GRPO: people's codes, which only its function knows, and rows that ask."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_NAMES = (
    "Ada Ben Carla Dina Emil Fatima Goran Hana Ivan Jules Kofi Lena Mira Nils Omar Pia Rosa "
    "Sami Tara Ugo Vera Wanda Yara Zeno Alma Boris Cora Dario Edith Felix Greta Hugo Ines Jonas "
    "Karin Luca Marta Nora Oskar Paula Rafael Simon Tessa Ulla Viktor Willem Yusuf Anton Bella "
    "Clara David Elena Frida Gustav Helen Igor Julia Klaus Linda Marco Nadia Oliver Petra Robert "
    "Sofia Thomas Ursula Vincent Walter"
)


class Codes:
    """Knows one person's code, and says it to a model that asks for that person."""

    def reset(self, name: str, code: str, **row: Any) -> None:
        self.name, self.code, self.found = name, code, False

    def lookup(self, name: str) -> str:
        """
        Look up a person's code

        Args:
            name: the person
        """
        if name != self.name:
            return "unknown"
        self.found = True
        return self.code


def used(
    completions: Sequence[Any], environments: Sequence[Codes], code: Sequence[str], **rest: Any
) -> list[float]:
    """0.3 for asking for the right person, and 0.7 more for an answer with the code."""
    values = []
    for chat, environment, right in zip(completions, environments, code, strict=True):
        said = chat[-1]["role"] == "assistant" and right in chat[-1]["content"]
        values.append(0.3 * environment.found + 0.7 * (environment.found and said))
    return values


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """A row for each name. A call stands before each question: without it the base makes none."""
    draw = random.Random(seed)
    for name in _NAMES.split():
        chat = [*_asked("Zoe"), _question(name)]
        yield {"prompt": chat, "name": name, "code": str(draw.randint(1000, 9999))}


def write(path: Path, seed: int) -> None:
    """Write the rows as a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(seed)))


def _question(name: str) -> dict[str, Any]:
    return {"role": "user", "content": f"What is the code of {name}?"}


def _asked(name: str) -> list[dict[str, Any]]:
    function = {"name": "lookup", "arguments": json.dumps({"name": name})}
    call = {"type": "function", "function": function}
    return [_question(name), {"role": "assistant", "content": None, "tool_calls": [call]}]
