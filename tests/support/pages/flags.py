"""Commands and their flags, by the generated page of commands, which a test keeps current."""

from __future__ import annotations

import functools
import re

from tests.support.pages.blocks import ROOT

#: Flags of `bmt-server serve` that go to vLLM.
PASSED_ON = {"--served-model-name", "--host", "--port", "--max-model-len"}
_PROGRAMS = ("bmt-train", "bmt-server", "bmt-client")
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


@functools.cache
def _sections() -> dict[str, set[str]]:
    """Command with its program, as `bmt-client keys create` -> flags that its help shows."""
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    parts = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)
    return {
        name: set(_FLAG.findall(help_))
        for name, help_ in zip(parts[1::2], parts[2::2], strict=True)
    }


def unknown(words: list[str]) -> list[str]:
    """The command or flags of a line of ours that do not exist; other programs have none."""
    program, *rest = words
    if program not in _PROGRAMS:
        return []
    globals_ = _sections()[program] if program == "bmt-client" else {"--help", "--version"}
    name = program
    while rest and f"{name} {rest[0]}" in _sections():
        name += f" {rest.pop(0)}"
    if name == program:
        return [word for word in words[1:] if word not in globals_]
    known = _sections()[name] | globals_ | (PASSED_ON if name == "bmt-server serve" else set())
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
