"""Shipped chat templates by name, and how answers of each are read back into messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent

#: Names of the templates. tools: ChatML with functions in Hermes form.
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


def path_of(name: str) -> Path:
    """The file of a template, as `bmt-server serve --chat-template` takes it."""
    return _FOLDER / f"{name}.jinja"


def text_of(name: str) -> str:
    """A template's text, as a tokenizer's `chat_template`."""
    return path_of(name).read_text(encoding="utf-8")


def response_template(chat_template: str) -> dict[str, Any] | None:
    """The reader of an answer under a shipped template; None for any other template's text.

    The value of a tokenizer's `response_template` (transformers, utils/chat_parsing).
    """
    for name in NAMES:
        if chat_template == text_of(name):
            read = (_FOLDER / f"{name}.response.json").read_text(encoding="utf-8")
            return dict(json.loads(read))
    return None
