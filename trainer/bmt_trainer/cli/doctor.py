"""Command of `bmt-train` that shows what of a model can be masked: doctor."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
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

    With the memory that each method takes with its default settings, at most.

    Reads the configuration and the headers of the weights; of a model of the Hub it downloads
    these alone. Exit code 1 if training would be
    refused.
    """
    from bmt_trainer.masking.diagnosis import diagnose
    from bmt_trainer.methods.memory.of_run import of_defaults
    from bmt_trainer.models import pick_device
    from bmt_trainer.outlines.headers import with_headers

    with tempfile.TemporaryDirectory(prefix="bmt-doctor-") as scratch:
        folder = with_headers(model, Path(scratch))
        found = diagnose(folder, targets)
        gated = [rows * columns for rows, columns in found.tensors.values()]
        device = pick_device("auto")
        memory = of_defaults(folder, gated, device, targets) if found.refusal is None else {}
    if as_json:
        peaks = {name: made.peak for name, made in memory.items()}
        answer = {**dataclasses.asdict(found), "not_served": found.not_served}
        print(json.dumps({**answer, "memory_bytes": peaks}))
    else:
        for line in found.lines():
            print(line)
        for name, made in memory.items():
            print(made.line(f"memory of {name} with its default settings"))
    if found.refusal is not None:
        raise typer.Exit(1)


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command("doctor")(doctor)
