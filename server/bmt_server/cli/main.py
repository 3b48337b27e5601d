"""`bmt-server`: serve, doctor, keys, fsck, gc."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from bmt_core.console_script import TYPER_SETTINGS, version_line
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from bmt_server.cli.keys import app as keys_app
from bmt_server.cli.registry import fsck, gc
from bmt_server.settings import MASK_MODES, MaskMode

app = typer.Typer(
    name="bmt-server",
    help="Serve one base model with any number of bit masks, behind OpenAI-compatible endpoints.",
    **TYPER_SETTINGS,
)

app.add_typer(keys_app, name="keys")
app.command()(fsck)
app.command()(gc)


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


class VllmCommand(TyperCommand):
    """Command that passes unknown options on to vLLM.

    `-h` means help as a word of its own alone: as a declared option it would also be found in
    vLLM's `-dph` and `-hd`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--help" if word == "-h" else word for word in args])


def default_data_dir() -> Path:
    """$BMT_DATA_DIR, else the user's data folder."""
    if chosen := os.environ.get("BMT_DATA_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "bmt-server"


@app.command(
    cls=VllmCommand,
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": ["--help"],
    },
    epilog="Every other flag goes to vLLM's server: --host, --port, --max-model-len, --dtype, …",
)
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or folder of the base model.")],
    registry: Annotated[
        str,
        typer.Option(
            envvar="BMT_REGISTRY",
            help="redis://, rediss:// or unix:// URL of Redis or Valkey. "
            "Without it, an embedded Valkey keeps the masks in the data folder.",
        ),
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Embedded registry and cache of masks. Default: $BMT_DATA_DIR."),
    ] = None,
    mask_mode: Annotated[
        str,
        typer.Option(
            help="How masks are applied: scatter (in place, one mask a step), delta (corrected "
            "in the output, any mix), auto (in place where one mask owns a step)."
        ),
    ] = "auto",
    mask_memory: Annotated[
        int,
        typer.Option(
            help="Memory for masks in each worker, MiB; a GPU's is taken at start.", min=1
        ),
    ] = 1024,
    mask_cache_gib: Annotated[
        float,
        typer.Option(help="Bound on masks kept on the local disk, in the data folder, GiB.", min=0),
    ] = 10.0,
    scatter_quantum_ms: Annotated[
        float,
        typer.Option(help="scatter: how long a mask's turn lasts if nothing cuts it, ms.", min=0),
    ] = 50.0,
    scatter_max_wait_ms: Annotated[
        float,
        typer.Option(
            help="scatter: no request that can run waits longer for its mask's turn, ms; turns "
            "shrink to keep to it, down to one step.",
            min=1,
        ),
    ] = 1000.0,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="No API keys. Only on loopback.")
    ] = False,
    metrics_open: Annotated[
        bool, typer.Option("--metrics-open", help="/metrics needs no key.")
    ] = False,
    max_sparsity: Annotated[
        float, typer.Option(help="Largest share of the gate weights that a mask may set to zero.")
    ] = 0.05,
    max_density: Annotated[
        float | None, typer.Option(hidden=True, help="Former name of --max-sparsity.")
    ] = None,
    hang_seconds: Annotated[
        float,
        typer.Option(
            help="/livez fails where the engine has requests and does nothing for so long, s. "
            "0: never.",
            min=0,
        ),
    ] = 50.0,
    key_concurrency: Annotated[
        int,
        typer.Option(help="Requests of one API key at once; more get 429. 0: no limit.", min=0),
    ] = 0,
    key_rate: Annotated[
        float,
        typer.Option(help="Requests of one API key a second; more get 429. 0: no limit.", min=0),
    ] = 0.0,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Also write the first API key to this file, readable by you alone."),
    ] = None,
) -> None:
    """Serve MODEL with masks."""
    from bmt_server.cli.serve import ServeOptions
    from bmt_server.cli.serve import serve as run

    if mask_mode not in MASK_MODES:
        _fail(f"--mask-mode is {mask_mode!r}; it must be one of {', '.join(MASK_MODES)}", 2)
    options = ServeOptions(
        model=model,
        registry=registry,
        data_dir=data_dir or default_data_dir(),
        mask_mode=cast(MaskMode, mask_mode),
        mask_memory_mib=mask_memory,
        mask_cache_gib=mask_cache_gib,
        scatter_quantum_ms=scatter_quantum_ms,
        scatter_max_wait_ms=scatter_max_wait_ms,
        auth=not no_auth,
        metrics_open=metrics_open,
        max_sparsity=max_sparsity if max_density is None else max_density,
        hang_s=hang_seconds,
        key_concurrency=key_concurrency,
        key_rate=key_rate,
        key_file=key_file,
    )
    try:
        run(options, context.args)
    except _expected() as error:
        _fail(str(error), 1)


@app.command()
def doctor(
    registry: Annotated[
        str, typer.Option(envvar="BMT_REGISTRY", help="Also look at this registry.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Say what this host can do for masks. Exit code 1 where something stands in the way."""
    from bmt_server.cli.doctor import examine

    findings = list(examine(registry))
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}
        table = Table(box=None, show_header=False, padding=(0, 1))
        for f in findings:
            table.add_row(
                f"[{colour[f.verdict]}]{f.verdict}[/]",
                f.what,
                escape(f.value) + (f"\n→ {escape(f.fix)}" if f.fix else ""),
            )
        Console().print(table)
    if any(f.verdict == "fail" for f in findings):
        raise typer.Exit(1)


def _expected() -> tuple[type[Exception], ...]:
    """Errors that are the user's to mend: one line, no trace."""
    import bmt_core

    from bmt_server.registry.embedded import EmbeddedError
    from bmt_server.settings import SettingsError
    from bmt_server.vllm_integration.unsupported_flags import UnsupportedFlagError
    from bmt_server.vllm_integration.version import VllmVersionError

    return (bmt_core.BmtError, EmbeddedError, UnsupportedFlagError, VllmVersionError, SettingsError)


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print(f"[red]bmt-server:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Entry point of `bmt-server`."""
    app()
