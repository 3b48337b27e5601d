"""Rows of files for fine-tuning, and a file of them as a form has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def supervised(question: str = "2+3?", answer: str = "5") -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def pair(question: str = "2+3?", chosen: str = "5", rejected: str = "6") -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": chosen}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }


def graded(question: str = "2+3?", answer: str = "5") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "answer": answer}


def jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def form(data: bytes, name: str = "train.jsonl", **fields: str) -> dict[str, Any]:
    """Arguments of an HTTP client's `post`."""
    return {"files": {"file": (name, data)}, "data": {"purpose": "fine-tune", **fields}}
