"""Command lines of bmt-client that ask a server, one for each command."""

from __future__ import annotations

from pathlib import Path

import bmt_core

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
}


def words(name: str, url: str) -> list[str]:
    """The command line against the server at `url`; `login` reads its key from stdin."""
    return ["--url", url, *(word.format(url=url) for word in COMMANDS[name])]


def stdin(name: str) -> str | None:
    return f"{KEY}\n" if name == "login" else None


def write_files(folder: Path) -> None:
    """The files that the command lines name."""
    bmt_core.save(make_mask(0), folder / "math.bmt")
