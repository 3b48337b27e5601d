"""Names of all flags of `bmt-server serve`, so that a wrong one is refused without loading vLLM.

vLLM's own parser takes 10 s to load. Its flags have the names of its arguments, all of which are
decided on (`decided.py`, `unsupported_flags.py`); the rules of spelling are those of its parser.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from bmt_server.vllm_integration.arguments.decided import DECIDED
from bmt_server.vllm_integration.unsupported_flags import REFUSED

#: Flags of other names than their arguments.
_ALIASES = ("--device-memory-utilization", "--speculative-config")
#: Arguments that no flag sets.
_NO_FLAG = {"model_tag", "_api_process_count", "_api_process_rank"}
_SHORT = (
    *("-asc", "-q", "-pp", "-n", "-r", "-tp", "-dcp", "-pcp", "-dp", "-dpn", "-dpr", "-dpl"),
    *(
        "-dpa",
        "-dpp",
        "-dpb",
        "-dph",
        "-dpe",
        "-dpm",
        "-ep",
        "-sc",
        "-dc",
        "-cc",
        "-ac",
        "-h",
        "-O",
    ),
)
_PROPOSED = 3
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


def unknown_flag(words: Sequence[str], own: Iterable[str]) -> str | None:
    """Message about the first word that is a flag of neither vLLM nor `own`, or None.

    words: the command line without the flags in `own`. own: the server's flags, for the proposal.
    """
    arguments = (DECIDED | {refusal.flag for refusal in REFUSED}) - _NO_FLAG
    names = {"--" + name.replace("_", "-") for name in arguments}.union(_ALIASES)
    for word in words:
        if word == "--":
            return None
        flag = re.split(r"[=.]", word, maxsplit=1)[0]
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            forms = _forms(flag)
            # The parser takes an unambiguous beginning for the whole.
            meant = names.intersection(forms) or {n for n in names if n.startswith(forms)}
        elif flag.startswith("-") and not _NUMBER.fullmatch(word):
            # Names of one letter take their value without a space.
            meant = {name for name in _SHORT if name.startswith(flag) or name == flag[:2]}
            meant = {flag} if meant else meant
        else:
            continue
        if len(meant) != 1:
            every = sorted({*names, *own, *_SHORT})
            near = [name for name in every if name.startswith(flag)][:_PROPOSED]
            near = near or difflib.get_close_matches(flag, every, n=1)
            typed = re.split(r"[=.]", word, maxsplit=1)[0]
            return f"no such flag: {typed}" + (f"; did you mean {' or '.join(near)}?" * bool(near))
    return None


def unknown_key(words: Sequence[str]) -> str | None:
    """Message about the first key of the file of `--config` that is no flag of vLLM, or None.

    A file that cannot be read is an error of vLLM's parser.
    """
    path = given("--config", words)
    if path is None:
        return None
    try:
        keys = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = unknown_flag([f"--{key}" for key in keys], ()) if isinstance(keys, dict) else None
    return f"{path}: {found}" if found else None


def _forms(flag: str) -> tuple[str, ...]:
    """A long flag, and the names that it negates: `--no-x`, and from vLLM 0.33 on its opposite."""
    positive = re.sub("^--no-", "--", flag)
    if positive.startswith("--disable-"):
        return positive, positive.replace("--disable-", "--enable-", 1)
    if positive.startswith("--enable-"):
        return positive, positive.replace("--enable-", "--disable-", 1)
    return (positive,)


def given(flag: str, words: Sequence[str]) -> str | None:
    """Value of the last use of a flag on a command line, or None."""
    value = None
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value
