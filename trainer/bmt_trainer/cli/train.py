"""Commands of `bmt-train` that train a mask: sft, dpo, kto, grpo, sdft."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from bmt_core import Mask
from rich.console import Console

from bmt_trainer.cli.tables import print_table
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import (
    DpoConfig,
    GrpoConfig,
    KtoConfig,
    SdftConfig,
    SftConfig,
    TrainConfig,
)
from bmt_trainer.methods.guards.interruption import Interrupted, Interruption
from bmt_trainer.process import is_main_process, keep_freed_memory
from bmt_trainer.settings import build, flag_type, read_yaml

C = TypeVar("C", bound=TrainConfig)

# Of methods that score by preferences: the name of the share, and the mean of a score.
_BY_PREFERENCES = {"dpo": ("chosen preferred", "margin"), "kto": ("moved as labeled", "gain")}


def sft(config: SftConfig) -> None:
    """Train a mask by supervised fine-tuning."""
    _check_libraries()
    from bmt_trainer.methods.sft import train

    run(train, config)


def dpo(config: DpoConfig) -> None:
    """Train a mask by preferences: chosen and rejected answers."""
    _check_libraries()
    from bmt_trainer.methods.preferences.dpo import train

    run(train, config)


def kto(config: KtoConfig) -> None:
    """Train a mask by answers with a label: wanted or not."""
    _check_libraries()
    from bmt_trainer.methods.preferences.kto import train

    run(train, config)


def grpo(config: GrpoConfig) -> None:
    """Train a mask by reinforcement learning with verifiable rewards."""
    _check_libraries()
    from bmt_trainer.methods.grpo import train

    run(train, config)


def sdft(config: SdftConfig) -> None:
    """Train a mask by on-policy distillation from demonstrations."""
    _check_libraries()
    from bmt_trainer.methods.sdft import train

    run(train, config)


def _check_libraries() -> None:
    """Raise LibraryError before an import fails; the run itself warns of an untested version."""
    from bmt_trainer.methods.guards.trl_contract import check_trl

    check_trl(lambda line: None)


def run(train: Callable[[C], Mask], config: C) -> None:
    """Train and print the scores; an interrupted run with a checkpoint prints how to resume.

    A signal ends the program with 128 plus its number: 130 for SIGINT, 143 for SIGTERM.
    """
    keep_freed_memory()
    try:
        with Interruption().handled():
            mask = train(config)
    except KeyboardInterrupt as error:
        if any(config.output.parent.glob(f"{config.output.name}.run/checkpoint-*")):
            print(
                "bmt-train: interrupted; add --resume to the same command to continue",
                file=sys.stderr,
            )
        else:
            print(
                "bmt-train: interrupted before the first checkpoint; nothing is lost but time",
                file=sys.stderr,
            )
        if isinstance(error, Interrupted):
            raise SystemExit(error.exit_code) from None
        raise
    if is_main_process():
        _report(mask, config.output)


def _print_scores(method: str, scores: Mapping[str, Any]) -> None:
    if not scores:
        return
    if method in _BY_PREFERENCES:
        _print_preferences(scores, *_BY_PREFERENCES[method])
        return
    rewarded = method == "grpo"
    rows = []
    for name, score in scores.items():
        share, lenient = f"{score['accuracy']:.1%}", f"{score['lenient'] / score['total']:.1%}"
        cells: tuple[str, ...]
        if rewarded:
            low, high = score["mean_interval95"]
            cells = (f"{score['mean']:.4g}", f"{low:.4g} to {high:.4g}", share, lenient)
        else:
            low, high = score["interval95"]
            cells = (share, f"{low:.1%} to {high:.1%}", lenient)
        # A resumed run of an earlier build has scores without these counts.
        counts = (score.get("cut", "-"), score.get("unfinished_thoughts", "-"))
        rows.append((name, *cells, str(score["total"]), *map(str, counts)))
    first = ("mean reward", "95 % interval", "exact match")
    header = first if rewarded else ("exact match", "95 % interval")
    print_table(("", *header, "lenient", "n", "cut", "unfinished"), rows)


def _print_preferences(scores: Mapping[str, Any], right: str, mean: str) -> None:
    rows = []
    for name, score in scores.items():
        (low, high), (least, most) = score["interval95"], score[f"{mean}_interval95"]
        share, margin = f"{score['accuracy']:.1%}", f"{score[mean]:.4g}"
        cells = (share, f"{low:.1%} to {high:.1%}", margin, f"{least:.4g} to {most:.4g}")
        rows.append((name, *cells, str(score["total"])))
    shown = (right, "95 % interval", f"{mean}, nats", "95 % interval", "n")
    print_table(("", *shown), rows)


def _report(mask: Mask, output: Path) -> None:
    _print_scores(mask.metadata["method"], mask.metadata.get("scores", {}))
    for warning in mask.metadata.get("warnings", ()):
        Console().print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    size = output.stat().st_size
    Console().print(
        f"{output}: {size:,} bytes, {mask.zeros:,} of {mask.numel:,} weights deleted "
        f"({mask.sparsity:.3%}), digest {mask.digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )


def settings_command(kind: type[Any], run: Callable[[Any], None]) -> Callable[..., None]:
    """A command with a flag for each field of the dataclass `kind`, and `--config` for a YAML file.

    `run` gets the settings of the file, overridden by the flags.
    """

    def command(config: Path | None, **flags: Any) -> None:
        values = read_yaml(config) if config else {}
        given = {name: value for name, value in flags.items() if value is not None}
        for name, other in (("steps", "epochs"), ("epochs", "steps")):
            if name in given and other not in given:
                values.pop(other, None)  # one of the two counts, and flags override the file
        values |= given
        made = build(kind, values)
        # Its steps are then the default, which settings cannot tell from none.
        if None not in (values.get("steps"), values.get("epochs")):
            raise ConfigError(
                f"epochs: {made.epochs:g} takes the place of steps, and steps is {made.steps}; "
                "set one of them"
            )
        run(made)

    path = Annotated[Path | None, typer.Option(help="YAML file with settings; flags override it.")]
    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("config", only, default=None, annotation=path)]
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default
        note = "required" if default is dataclasses.MISSING else f"default: {default}"
        text = field.metadata["help"] + ("" if default is None else f" [{note}]")
        # Optional in the type too: None is "not given", and the file's value counts.
        option = typer.Option(*field.metadata.get("flags", ()), help=text)
        flag: Any = Annotated[flag_type(hints[field.name]) | None, option]
        parameters.append(inspect.Parameter(field.name, only, default=None, annotation=flag))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


#: Commands that train, by name; all of them run in several processes.
COMMANDS: Mapping[str, tuple[type[TrainConfig], Callable[[Any], None]]] = {
    "sft": (SftConfig, sft),
    "dpo": (DpoConfig, dpo),
    "kto": (KtoConfig, kto),
    "grpo": (GrpoConfig, grpo),
    "sdft": (SdftConfig, sdft),
}


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    for name, (kind, command) in COMMANDS.items():
        app.command(name)(settings_command(kind, command))
