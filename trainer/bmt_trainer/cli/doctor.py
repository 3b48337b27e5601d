"""Command of `bmt-train` that shows what of a model can be masked: doctor."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer


def doctor(
    model: Annotated[str, typer.Argument(help="The base: a folder or a model of the Hub.")],
    targets: Annotated[
        str | None, typer.Option(help="Pattern of the module names to mask, as in `sft`.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Show which layers are masked, which are not and why, and if a server takes such masks.

    Reads the configuration and the headers of the weights. Exit code 1 if training would be
    refused.
    """
    from bmt_trainer.masking.diagnosis import diagnose
    from bmt_trainer.models import checkpoint_folder

    found = diagnose(checkpoint_folder(model), targets)
    if as_json:
        print(json.dumps({**dataclasses.asdict(found), "not_served": found.not_served}))
    else:
        for line in found.lines():
            print(line)
    if found.refusal is not None:
        raise typer.Exit(1)


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command("doctor")(doctor)
