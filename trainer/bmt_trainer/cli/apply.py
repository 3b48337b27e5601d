"""Command of `bmt-train` that writes a masked checkpoint: apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import bmt_core
import typer


def apply(
    mask: Annotated[Path, typer.Argument(help="Mask file (.bmt).", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Write the masked model as a plain checkpoint that any engine loads."""
    from bmt_trainer.masking.apply import write_checkpoint
    from bmt_trainer.models import checkpoint_folder

    print(write_checkpoint(bmt_core.load(mask), checkpoint_folder(model), output))


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command("apply")(apply)
