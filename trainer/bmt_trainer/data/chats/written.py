"""Chats that a table of text stores as JSON, where a text is expected."""

from __future__ import annotations

import json

from bmt_trainer.data.examples import Example

_FORMS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})


def has_written_chat(example: Example) -> bool:
    """True if the answer or the prompt's last turn is the JSON of a chat."""
    prompt = example.prompt
    asked = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt[-1:])
    return _is_chat(example.answer) or _is_chat(asked)


def _is_chat(text: str) -> bool:
    """True for the JSON of a list of messages, in OpenAI's form or in ShareGPT's."""
    if not text.lstrip().startswith("["):
        return False
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(turns) and all(
        isinstance(turn, dict) and any(form <= turn.keys() for form in _FORMS) for turn in turns
    )
