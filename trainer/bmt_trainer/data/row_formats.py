"""Conversion of rows of data sets, in the forms that are in use, into examples."""

from __future__ import annotations

from typing import Any

from bmt_trainer.data.examples import Example, Message, chat
from bmt_trainer.errors import DataError

_ROW_FORMS = '{"prompt": …, "completion": …} or {"messages": […]}'


def example_of(row: Any, location: str) -> Example:
    """The example of one row. location: of the row, for error messages. Raises DataError."""
    if isinstance(row, dict):
        if "messages" in row:
            messages = _messages(row["messages"], location)
            if len(messages) > 1 and messages[-1]["role"] == "assistant":
                return Example(messages[:-1], messages[-1]["content"].strip())
        elif "prompt" in row and "completion" in row:
            completion = row["completion"]
            if not isinstance(completion, str):
                completion = _messages(completion, location)[-1]["content"]
            prompt, demonstration = row["prompt"], row.get("demonstration")
            if demonstration is not None and not isinstance(demonstration, str):
                raise DataError(f"{location}: `demonstration` must be text")
            turns = chat(prompt) if isinstance(prompt, str) else _messages(prompt, location)
            return Example(turns, completion.strip(), demonstration)
    raise DataError(f"{location}: expected {_ROW_FORMS}, a chat that ends with the assistant")


def _messages(value: Any, location: str) -> tuple[Message, ...]:
    ok = isinstance(value, list) and value
    if ok and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    ):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise DataError(f"{location}: chat messages are a list of {{'role': …, 'content': …}}")
