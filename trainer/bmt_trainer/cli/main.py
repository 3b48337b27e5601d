"""`bmt-train`: train masks, evaluate them, and write masked checkpoints.

Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from bmt_core import BmtError
from bmt_core.console_script import TYPER_SETTINGS, version_line
from rich.console import Console
from rich.table import Table

from bmt_trainer.cli import paper
from bmt_trainer.cli import scores as cli_scores
from bmt_trainer.distributed import is_first
from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig, TrainConfig
from bmt_trainer.process import keep_freed_memory
from bmt_trainer.settings import build, read_yaml

if TYPE_CHECKING:
    from bmt_core import Mask

app = typer.Typer(
    name="bmt-train",
    help="Train, evaluate and apply bit masks of language models.",
    **TYPER_SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version_line("bmt-train"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None: ...


def settings_command(kind: type[Any], run: Callable[[Any], None]) -> Callable[..., None]:
    """A command with a flag per field of the dataclass `kind`, and `--config` for a YAML file.

    `run` gets the settings: the file's, overridden by the flags.
    """

    def command(config: Path | None, **flags: Any) -> None:
        values = read_yaml(config) if config else {}
        values |= {name: value for name, value in flags.items() if value is not None}
        run(build(kind, values))

    path = Annotated[Path | None, typer.Option(help="YAML file with settings; flags override it.")]
    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("config", only, default=None, annotation=path)]
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        shown = item.default
        note = "required" if shown is dataclasses.MISSING else f"default: {shown}"
        text = item.metadata["help"] + ("" if shown is None else f" [{note}]")
        # Optional in the type too: None is "not given", and the file's value counts.
        flag: Any = Annotated[hints[item.name] | None, typer.Option(help=text)]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(item.name, only, default=None, annotation=flag))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def _sft(config: SftConfig) -> None:
    """Train a mask by supervised fine-tuning."""
    from bmt_trainer.methods import sft

    keep_freed_memory()
    with _said_how_to_resume(config):
        mask = sft.train(config)
    _report(mask, config.output)


def _grpo(config: GrpoConfig) -> None:
    """Train a mask by reinforcement learning with verifiable rewards."""
    from bmt_trainer.methods import grpo

    keep_freed_memory()
    with _said_how_to_resume(config):
        mask = grpo.train(config)
    _report(mask, config.output)


def _sdft(config: SdftConfig) -> None:
    """Train a mask by on-policy distillation from demonstrations."""
    from bmt_trainer.methods import sdft

    keep_freed_memory()
    with _said_how_to_resume(config):
        mask = sdft.train(config)
    _report(mask, config.output)


@contextmanager
def _said_how_to_resume(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if any(config.output.parent.glob(f"{config.output.name}.run/checkpoint-*")):
            print("bmt-train: interrupted; the same command with --resume goes on", file=sys.stderr)
        raise


def _report(mask: Mask, output: Path) -> None:
    if not is_first():
        return
    console = Console()
    scores = mask.metadata.get("scores", {})
    if scores:
        table = Table("", "exact match", "95 % interval", "lenient", "n")
        for name, score in scores.items():
            low, high = score["interval95"]
            lenient = score["lenient"] / score["total"]
            row = (f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", f"{lenient:.1%}")
            table.add_row(name, *row, str(score["total"]))
        console.print(table)
    size = output.stat().st_size
    console.print(
        f"{output}: {size:,} bytes, {mask.zeros:,} of {mask.numel:,} weights deleted "
        f"({mask.sparsity:.3%}), digest {mask.digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )


app.command("sft")(settings_command(SftConfig, _sft))
app.command("grpo")(settings_command(GrpoConfig, _grpo))
app.command("sdft")(settings_command(SdftConfig, _sdft))
paper.add(app)
cli_scores.add(app)


@app.command("apply")
def apply_command(
    mask: Annotated[Path, typer.Argument(help="The mask file.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    output: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
) -> None:
    """Write the masked model as a plain checkpoint that any engine loads."""
    import bmt_core

    from bmt_trainer.masking.apply import write_checkpoint
    from bmt_trainer.models import checkpoint_folder

    written = write_checkpoint(bmt_core.load(mask), checkpoint_folder(model), output)
    print(written)


def main() -> None:
    """Entry point: errors that a user can mend are one line, without a trace."""
    try:
        app()
    except (TrainerError, BmtError) as error:
        print(f"bmt-train: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"bmt-train: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
