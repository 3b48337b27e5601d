"""Commands of `bmt-train` that reproduce the paper's comparisons: compare, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bmt_trainer.cli.tables import print_table
from bmt_trainer.errors import ConfigError
from bmt_trainer.process import is_main_process, keep_freed_memory
from bmt_trainer.settings import parse_yaml


def compare(
    config: Annotated[
        Path | None, typer.Option(help="Recipe: YAML file with settings; flags override it.")
    ] = None,
    comparison: Annotated[
        str | None, typer.Option(help="Name of the comparison, if the recipe has several.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of results; finished runs are kept.")
    ] = None,
    trainer: Annotated[str | None, typer.Option(help="sft, grpo or sdft.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods: base, wanda, full, lora-RANK, lora-RANK-aALPHA, "
            "tinylora-N, mth-PERCENT, bmt; METHOD@RATE has another learning rate than the paper's."
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Folder or model of the Hub; repeatable.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set, as in the trainer's command; repeatable.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value of a setting of the trainer; repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Train and score masks and baselines with the same data and steps.

    A run is identified by its settings and by the content of its model and data, and a finished
    run is not repeated. Several processes with the same command share the runs, for example one
    per GPU.
    """
    values = {
        **{"output": output, "trainer": trainer, "methods": methods},
        **{"models": model or None, "datasets": dataset or None},
    }
    changes = {name: value for name, value in values.items() if value is not None}
    if comparison is not None and config is None:
        raise ConfigError("--comparison names a part of a recipe; name the recipe by --config")

    from bmt_trainer.comparison import plan as plans
    from bmt_trainer.comparison import tables
    from bmt_trainer.comparison.runner import run

    plan = plans.read(config, changes | _settings(setting or []), comparison)
    keep_freed_memory()
    results = run(plan)
    if not is_main_process():
        return
    if as_json:
        print(json.dumps(results))
        return
    rows = tables.rows(results)
    print_table(tables.HEADER, [row.cells() for row in rows])
    if differences := tables.differences(rows):
        print_table(tables.DIFFERENCES, differences)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """Settings of name=value texts. Raises ConfigError."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: write name=value")
        if name in settings:
            raise ConfigError(f"--set {name} is given twice")
        settings[name] = parse_yaml(value)
    return settings


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Result folders of `compare`, result files, or masks with a .history.json."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Bit-Mask Tuning",
) -> None:
    """Write one page with tables and plots, and the plots as PNG."""
    from bmt_trainer.comparison.report import write
    from bmt_trainer.console import Display

    print(write(runs, output, title, Display().say))


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    app.command("compare")(compare)
    app.command("report")(report)
