"""Texts that programs print, out of their sources, and messages that pages quote."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from tests.support.pages.blocks import ROOT

PACKAGES = ("core", "trainer", "server", "client", "tools", "examples/demo")
#: What stands for a part that differs, in pages and here.
ANY = "…"
#: Letters of a part that says nothing by itself, such as "; ".
_SMALL = 3
#: Letters of the longest part at least.
_LEAST = 12


@functools.cache
def texts() -> str:
    """All texts of the packages, a line each; the fields of f-strings are `…`."""
    files = [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]
    return "\n".join(text for file in files for text in _of(file))


def _of(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else ANY for v in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [" ".join(text.split()) for text in found]


def missing(message: str) -> list[str]:
    """Parts of a message, between `…`, that no text of the sources has."""
    parts = [part for part in message.split(ANY) if len(part.strip()) >= _SMALL]
    if max(map(len, parts), default=0) < _LEAST:
        return [message]
    return [part for part in parts if not _in_source(part.strip(" :;"))]


def _in_source(part: str) -> bool:
    """True for a text of the sources, and for two of them that a colon joins."""
    words = part.split(": ")
    halves = [(": ".join(words[:at]), ": ".join(words[at:])) for at in range(1, len(words))]
    return part in texts() or any(
        min(map(len, pair)) >= _LEAST and all(half in texts() for half in pair) for pair in halves
    )


def quoted(page: Path) -> list[str]:
    """Messages in the first column of the page's tables; those of a shell are not ours."""
    rows = re.findall(r"^\| (`.*?`) *(\(from the shell\))? \|", page.read_text(), re.MULTILINE)
    return [text.strip("`").strip() for text, shell in rows if not shell]
