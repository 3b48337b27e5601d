"""`bmt-server`: serve, doctor, family, keys, blobs, fsck, gc."""

from __future__ import annotations

from typing import Annotated

import typer
from bmt_core.console_script import TYPER_SETTINGS, version_line

from bmt_server.cli import blobs, doctor, family, keys, registry, serve

app = typer.Typer(
    name="bmt-server",
    help="Serve one base model with any number of bit masks through OpenAI-compatible endpoints.",
    **TYPER_SETTINGS,
)
app.add_typer(keys.app, name="keys")
app.add_typer(blobs.app, name="blobs")
app.command("fsck")(registry.fsck)
app.command("gc")(registry.gc)
app.command(
    "serve",
    cls=serve.VllmCommand,
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": ["--help"],
    },
    epilog="All other flags go to vLLM's server: --host, --port, --max-model-len, --dtype, …",
)(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("family")(family.family)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_line("bmt-server"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of `bmt-server`."""
    app()
