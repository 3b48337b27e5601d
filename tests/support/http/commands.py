"""Command lines of bmt-client that ask a server, one for each command."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import bmt_core
from bmt_client.cli import app
from typer.core import TyperGroup
from typer.main import get_command

from tests.support.http.fake_server import KEY
from tests.support.masks import make_mask

# Words of each command, for a server with the mask `math` of `make_mask(0)` and its alias `prod`.
COMMANDS: dict[str, tuple[str, ...]] = {
    "upload": ("upload", "math.bmt"),
    "list": ("list",),
    "show": ("show", "math"),
    "versions": ("versions", "math"),
    "alias": ("alias", "math", "eu", "math"),
    "unalias": ("alias", "math", "eu", "--delete"),
    "rollback": ("rollback", "math", "--to", "math:prod"),
    "prune": ("prune", "math", "--keep-last", "1"),
    "download": ("download", "math", "-o", "out.bmt"),
    "copy": ("copy", "math", "--to", "{url}", "--name", "copied"),
    "pin": ("pin", "math"),
    "unpin": ("unpin", "math"),
    "diff": ("diff", "math.bmt", "math"),
    "chat": ("chat", "math", "hello"),
    "models": ("models",),
    "status": ("status",),
    "whoami": ("whoami",),
    "login": ("login",),
    "delete": ("delete", "math"),
    "usage": ("usage",),
    "limits show": ("limits", "show"),
    "limits set": ("limits", "set", "--tenant", "acme", "--versions", "1"),
    "limits remove": ("limits", "remove", "--tenant", "acme"),
}


# Commands for which the stand-in of a server has no route.
NO_ROUTE = {
    "import": ("import", "math:prod", "--name", "imported"),
    "files upload": ("files", "upload", "math.bmt"),
}
# Commands that ask no server.
LOCAL = {"inspect", "logout", "push", "pull"}


@cache
def all_commands() -> dict[str, tuple[str, ...]]:
    """COMMANDS, and a line for each other command of the program, also of a later one."""
    given = {**COMMANDS, **NO_ROUTE}
    known = {line[:n] for line in given.values() for n in (1, 2)} | {(name,) for name in LOCAL}
    return {**given, **{" ".join(line): line for line in _lines(get_command(app), known)}}


def _lines(
    group: Any, known: set[tuple[str, ...]], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        line = (*path, name)
        if isinstance(command, TyperGroup):
            yield from _lines(command, known, line)
            continue
        if line in known:
            continue
        for param in command.params:
            if param.required:
                value = "infer" if param.name == "scope" else "math"
                line += (value,) if param.param_type_name == "argument" else (param.opts[0], value)
        yield line


def words(name: str, url: str) -> list[str]:
    """The command line against the server at `url`; `login` reads its key from stdin."""
    return ["--url", url, *(word.format(url=url) for word in all_commands()[name])]


def stdin(name: str) -> str | None:
    return f"{KEY}\n" if name == "login" else None


def write_files(folder: Path) -> None:
    """The files that the command lines name."""
    bmt_core.save(make_mask(0), folder / "math.bmt")
