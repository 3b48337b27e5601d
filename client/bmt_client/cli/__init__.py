"""Command line `bmt-client`; each module has a group of commands.

Exit codes: 0 success, 1 failure, 2 usage error, 3 missing or wrong key, 4 not found, 5 conflict
with another client, 6 invalid file, 7 server unavailable, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from bmt_core.console_script import TYPER_SETTINGS, version_line
from typer.core import TyperGroup

from bmt_client import BmtClientError
from bmt_client._retry import DEFAULT_MAX_RETRIES

from . import chat, local, login, masks, versions
from .output import Output
from .session import INTERRUPTED, Session, exit_code, hint

_FLAGS = frozenset({"--json", "--allow-insecure"})
_VALUES = frozenset({"--url", "--timeout", "--retries"})


class Group(TyperGroup):
    """Command group: global options anywhere on the line, and exit codes for errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BmtClientError as error:
            out = ctx.obj.out if isinstance(ctx.obj, Session) else Output()
            out.error(error, hint(error))
            raise typer.Exit(exit_code(error)) from error
        except (KeyboardInterrupt, typer.Abort) as error:
            raise typer.Exit(INTERRUPTED) from error


def hoist(args: Sequence[str]) -> list[str]:
    """Move global options to the front: `list --json` becomes `--json list`."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _FLAGS or ("=" in word and word.split("=")[0] in _VALUES):
            front.append(word)
        elif word in _VALUES:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


app = typer.Typer(
    name="bmt-client",
    cls=Group,
    help="Store, version and fetch masks, and chat with masked models.",
    epilog="The key comes from BMT_API_KEY or from `bmt-client login`, never from a flag. "
    "Global options may appear anywhere on the line.",
    **TYPER_SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_line("bmt-client"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="Server address (BMT_URL).", metavar="URL", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for one attempt (BMT_TIMEOUT).", metavar="S"),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            help="Maximum number of attempts after the first.", min=0, max=1000, metavar="N"
        ),
    ] = DEFAULT_MAX_RETRIES,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
    allow_insecure: Annotated[
        bool,
        typer.Option("--allow-insecure", help="Allow the key over http:// to another machine."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    context.obj = Session(url, timeout, retries, allow_insecure, Output(as_json=as_json))


app.command("upload")(masks.upload)
app.command("list")(masks.list_masks)
app.command("show")(masks.show)
app.command("versions")(versions.versions)
app.command("alias")(versions.alias)
app.command("rollback")(versions.rollback)
app.command("delete")(masks.delete)
app.command("prune")(versions.prune)
app.command("download")(masks.download)
app.command("pin")(masks.pin)
app.command("unpin")(masks.unpin)
app.command("inspect")(local.inspect)
app.command("diff")(local.diff)
app.command("chat")(chat.chat)
app.command("models")(masks.models)
app.command("login")(login.login)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
