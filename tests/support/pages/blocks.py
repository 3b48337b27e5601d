"""Fenced blocks of a page, in order, with what the page says about running them.

A block of `bash` or `python` is run as it stands. Its information string and a comment before it
say more:

    ```python title="rewards.py"     a file: the reader saves it under that name
    ```text title="Output"           output of the block before; numbers and digests may differ
    ```text title="Output, …"        output whose words may differ, too
    <!-- not run: REASON -->         the next block cannot be run by a test
    <!-- run by: TEST -->            another test runs the next block
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
RUNNABLE = ("bash", "python")
# Words of the shell before a command.
_KEYWORDS = {"if", "then", "else", "while", "until", "do", "{", "!", "time"}
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|run by): (?P<why>[^>]*?) -->\n+)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    line: of its fence, from 1. output: the text that the page shows under it, "" for none; loose:
    the words of the output may differ. not_run, run_by: of the comment before it.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    not_run: str = ""
    run_by: str = ""
    output: str = ""
    loose: bool = False

    @property
    def runs(self) -> bool:
        """True if the page's own run includes this block."""
        return self.language in RUNNABLE and not (self.not_run or self.run_by)

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page but outputs, which belong to the block before."""
    found: list[Block] = []
    text = page.read_text()
    for match in _FENCE.finditer(text):
        title = match["title"] or ""
        line = text.count("\n", 0, match.start("language")) + 1
        if match["language"] == "text" and title.startswith("Output"):
            assert found, f"{page.name}:{line}: an output without a command"
            last = found.pop()
            assert not last.output, f"{page.name}:{line}: a second output"
            loose = title != "Output"
            found.append(_with_output(last, match["text"], loose))
            continue
        marks = {match["mark"].replace(" ", "_"): match["why"]} if match["mark"] else {}
        found.append(Block(page, line, match["language"], title, match["text"], **marks))
    assert len(re.findall(r"^```\w", text, re.MULTILINE)) == len(list(_FENCE.finditer(text)))
    return found


def _with_output(block: Block, output: str, loose: bool) -> Block:
    kept = {name: getattr(block, name) for name in Block.__slots__}
    return Block(**{**kept, "output": output, "loose": loose})


def commands(text: str) -> Iterator[list[str]]:
    """Words of each simple command of shell text; here-documents and comments are left out."""
    text = re.sub(r"<<'(\w+)'(.*?)\n.*?^\1$", r"\2", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\\n|\d>&\d|(?<!\S)#[^\n]*", " ", text)
    lexer = shlex.shlex(_substituted(text), posix=True, punctuation_chars=";&|()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for token in (*lexer, "\n"):
        if token and set(token) <= set(";&|()\n"):
            if words:
                yield words
            words = []
        elif words or token not in _KEYWORDS:
            words.append(token)


def _substituted(text: str) -> str:
    """Text with the commands of `$(…)` as commands of their own."""
    inner = re.findall(r"\$\(([^()]*)\)", text)
    return "\n".join([re.sub(r"\$\([^()]*\)", "X", text), *inner])
