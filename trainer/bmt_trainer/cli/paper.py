"""Commands of `bmt-train` that follow the paper: comparisons and reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from bmt_trainer.comparison import plan as plans
from bmt_trainer.distributed import is_first
from bmt_trainer.errors import ConfigError
from bmt_trainer.process import keep_freed_memory


def compare(
    config: Annotated[
        Path | None, typer.Option(help="A recipe: YAML with settings; flags override it.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of results; runs resume.")] = None,
    trainer: Annotated[str | None, typer.Option(help="sft, grpo or sdft.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Of base, wanda, full, lora-R, mth-P and bmt, with commas between them; @RATE "
            "after one sets its learning rate, else the paper's counts."
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A folder or a model of the Hub; may come again.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="As in the trainer's command; may come again.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value of the trainer's settings; may come again."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Train and score masks beside baselines, with the same data and steps.

    Results are kept by what decides them, the model's and data's content included. The same
    command started twice shares the runs: one process a GPU, say.
    """
    given = {
        **{"output": output, "trainer": trainer, "methods": methods},
        **{"models": model or None, "datasets": dataset or None},
    }
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    for text in setting or []:
        name, mark, value = text.partition("=")
        if not mark:
            raise ConfigError(f"--set {text!r}: write name=value")
        changes[name] = yaml.safe_load(value)
    plan = plans.read(config, changes)

    from bmt_trainer.comparison import tables
    from bmt_trainer.comparison.runner import run

    keep_freed_memory()
    results = run(plan)
    if not is_first():
        return
    if as_json:
        print(json.dumps(results))
        return
    print_table(tables.HEADER, [row.cells() for row in tables.rows(results)])


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `compare`, and their or GRPO's files.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("report"),
    title: Annotated[str, typer.Option(help="The page's title.")] = "Bit-Mask Tuning",
) -> None:
    """Write one page with tables and plots, and the plots as PNG."""
    from bmt_trainer.comparison.report import write

    print(write(runs, output, title))


def print_table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    """A table on standard output; cells are plain text."""
    table = Table(*header)
    for line in lines:
        table.add_row(*(re.sub(r"([\[\]])", r"\\\1", cell) for cell in line))
    Console().print(table)


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    app.command("compare")(compare)
    app.command("report")(report)
