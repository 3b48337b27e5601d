"""Commands of `bmt-train` that write a mask in other forms: export, and apply for one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import bmt_core
import typer

from bmt_trainer.errors import ConfigError

MaskFile = Annotated[
    Path, typer.Argument(metavar="MASK", help="Mask file (.bmt).", exists=True, dir_okay=False)
]
Model = Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")]
Output = Annotated[Path, typer.Option(help="Folder to write, outside the model: new, or empty.")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat template of the checkpoint: a Jinja file, or the name of a shipped one. "
        "Default: that of the mask's training, if it can be found."
    ),
]


def export(
    mask: MaskFile,
    model: Model,
    to: Annotated[
        Literal["checkpoint", "peft"],
        typer.Option(
            help="checkpoint: the masked model, for any engine. peft: an adapter that "
            "PeftModel.from_pretrained loads."
        ),
    ],
    output: Output,
    chat_template: Template = None,
) -> None:
    """Write a mask as a plain checkpoint of the masked model, or as an adapter of PEFT."""
    if to == "checkpoint":
        _write_checkpoint(mask, model, output, chat_template)
        return
    if chat_template is not None:
        raise ConfigError("chat-template: an adapter has none; use it with --to checkpoint")
    from bmt_trainer.console import Display
    from bmt_trainer.masking.adapters.peft import write_adapter
    from bmt_trainer.methods.guards.interruption import Interruption
    from bmt_trainer.models import checkpoint_folder
    from bmt_trainer.settings import expanded

    loaded, folder = bmt_core.load(mask), checkpoint_folder(model)
    name = None if expanded(model).is_dir() else model
    with Interruption().handled():
        print(write_adapter(loaded, folder, output, base_name=name, say=Display().say))


def apply(mask: MaskFile, model: Model, output: Output, chat_template: Template = None) -> None:
    """Write the masked model as a plain checkpoint: the same as export --to checkpoint."""
    _write_checkpoint(mask, model, output, chat_template)


def _write_checkpoint(mask: Path, model: str, output: Path, chat_template: str | None) -> None:
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
    """Add the commands to `bmt-train`."""
    app.command("export")(export)
    app.command("apply")(apply)
