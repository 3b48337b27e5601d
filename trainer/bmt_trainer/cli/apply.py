"""Command of `bmt-train` that writes a masked checkpoint: apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import bmt_core
import typer


def apply(
    mask: Annotated[Path, typer.Argument(help="Mask file (.bmt).", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    output: Annotated[
        Path, typer.Option(help="Folder to write, outside the model: new, or empty.")
    ],
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Chat template of the checkpoint: a Jinja file, or the name of a shipped one. "
            "Default: that of the mask's training, if it can be found."
        ),
    ] = None,
) -> None:
    """Write the masked model as a plain checkpoint that any engine loads."""
    from bmt_trainer.console import Display
    from bmt_trainer.masking.apply import write_checkpoint
    from bmt_trainer.methods.guards.interruption import Interruption
    from bmt_trainer.models import checkpoint_folder, load_tokenizer
    from bmt_trainer.templates.chat_templates import template_digest, template_for

    loaded, folder = bmt_core.load(mask), checkpoint_folder(model)
    own = template_digest(load_tokenizer(folder))
    template, line = template_for(loaded.metadata, own, chat_template)
    say = Display().say
    if line is not None:
        say(line)
    with Interruption().handled():
        print(write_checkpoint(loaded, folder, output, chat_template=template, say=say))


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command("apply")(apply)
