"""Command line `bmt-client`; each module has a group of commands.

Exit codes: 0 success, 1 failure, 2 usage error, 3 missing or wrong key, 4 not found, 5 conflict
with another client, 6 invalid file, 7 server unavailable, 130 interrupted. A command on several
files or masks ends with the code of the first that failed.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from bmt_core.console_script import TYPER_SETTINGS, version_line

from bmt_client._retry import DEFAULT_MAX_RETRIES

from . import chat, copying, keys, local, login, masks, status, uploads, versions
from .group import Group, hoist
from .hub import commands as hub_commands
from .output import Output
from .session import INTERRUPTED, Session
from .tuning import files, jobs
from .usage import counts, limits

__all__ = ["app", "hoist", "main"]

app = typer.Typer(
    name="bmt-client",
    cls=Group,
    help="Store, version and fetch masks, and chat with masked models.",
    epilog="The key comes from BMT_API_KEY or from `bmt-client login`, never from a flag. "
    "Global options may appear anywhere on the line.",
    **{**TYPER_SETTINGS, "add_completion": True},
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
        typer.Option(
            help="Server address, or a profile of `login` (BMT_URL).",
            metavar="URL",
            show_default=False,
        ),
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
    ca_file: Annotated[
        str | None,
        typer.Option(
            "--ca-file",
            help="Certificates to trust in place of the system's: a file or folder (BMT_CA_FILE).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
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
    # The group's own, which knows how many documents are printed.
    out = context.obj if isinstance(context.obj, Output) else Output(as_json=as_json)
    context.obj = Session(url, timeout, retries, allow_insecure, out, ca_file)


app.command("upload")(uploads.upload)
app.command("import")(uploads.import_mask)
app.command("list")(masks.list_masks)
app.command("show")(masks.show)
app.command("versions")(versions.versions)
app.command("alias")(versions.alias)
app.command("promote")(versions.promote)
app.command("rollback")(versions.rollback)
app.command("delete")(masks.delete)
app.command("prune")(versions.prune)
app.command("retention")(versions.retention)
app.command("download")(masks.download)
app.command("copy")(copying.copy)
app.command("push")(hub_commands.push)
app.command("pull")(hub_commands.pull)
app.command("pin")(masks.pin)
app.command("unpin")(masks.unpin)
app.command("inspect")(local.inspect)
app.command("diff")(local.diff)
app.command("chat")(chat.chat)
app.command("models")(masks.models)
app.command("status")(status.status)
app.command("whoami")(status.whoami)
app.add_typer(keys.app, name="keys")
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.command("usage")(counts.usage)
app.add_typer(limits.app, name="limits")
app.command("login")(login.login)
app.command("logout")(login.logout)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A text that the terminal's encoding lacks is escaped, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
