"""Commands of `bmt-train` that follow the paper: comparisons, evaluation sets, reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.table import Table

from bmt_trainer import plan as plans
from bmt_trainer.errors import ConfigError
from bmt_trainer.host import keep_freed_memory

if TYPE_CHECKING:
    from bmt_trainer.suites import Answer, Result


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
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

    from bmt_trainer import tables
    from bmt_trainer.compare import run

    keep_freed_memory()
    results = run(plan)
    if as_json:
        print(json.dumps(results))
        return
    _print(tables.HEADER, [row.cells() for row in tables.rows(results)])


def suites(
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    tasks: Annotated[
        str,
        typer.Option(
            help="Of gsm8k, gsm8k-boxed, math500, minerva, olympiadbench, aime24, amc23, "
            "mmlu-pro [SUBJECT], bbeh [SUBTASK], toolalpaca, toolalpaca-simulated, with commas "
            "between them."
        ),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(help="A mask file, compared with the base.", exists=True, dir_okay=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--data", help="Folder of the sets' files; else the Hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each set.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="At most, where a set's own is more.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 64,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help="What answers in this process; auto: vLLM where it is installed."),
    ] = "auto",
    server: Annotated[
        str | None,
        typer.Option(help="URL of a bmt-server that answers instead; its key: BMT_API_KEY."),
    ] = None,
    base_name: Annotated[str | None, typer.Option(help="The base's name there.")] = None,
    mask_name: Annotated[str | None, typer.Option(help="The mask's name there.")] = None,
    device: Annotated[str, typer.Option(help="Of transformers; to name one chooses it.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="As in training, to get its split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Score a base, and a mask beside it, on the paper's evaluation sets."""
    from bmt_trainer import suites as sets
    from bmt_trainer.answering import by_server, by_transformers, by_vllm, has_vllm

    keep_freed_memory()
    chosen = sets.named(tasks)
    models: dict[str, Answer]
    if server is not None:
        if base_name is None:
            raise ConfigError("--server needs --base-name, and --mask-name where there is a mask")
        names = {"base": base_name} | ({"mask": mask_name} if mask_name else {})
        models = by_server(server, names, at_once=batch_size)
    elif engine == "vllm" or (engine == "auto" and device == "auto" and has_vllm()):
        models = by_vllm(model, mask, batch_size=batch_size)
    else:
        models = by_transformers(model, mask, batch_size=batch_size, device=device)
    found: list[Result] = []
    for result in sets.run(
        chosen, models, folder=folder, limit=limit, max_new_tokens=max_new_tokens, seed=seed
    ):
        found.append(result)
        if result.skipped:
            Console(stderr=True).print(
                f"{result.suite}: skipped, {result.skipped}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    if as_json:
        print(json.dumps([result.to_json() for result in found]))
        return
    _print(("set", "model", "accuracy, %", "95 %", "lenient, %", "p", "n"), _lines(found))


def retention(
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    mask: Annotated[
        Path | None,
        typer.Option(help="A mask file; without it, the base.", exists=True, dir_okay=False),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Of lm-eval's, with commas between them.")
    ] = "hellaswag,mmlu,truthfulqa_mc2,winogrande,ifeval,humaneval",
    task_path: Annotated[
        Path | None, typer.Option(help="Folder of further task files of lm-eval.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Score what a model keeps of its skills, by lm-eval where that is installed."""
    import bmt_core

    from bmt_trainer import models
    from bmt_trainer.apply import apply
    from bmt_trainer.retention import retained

    names = [task.strip() for task in tasks.split(",") if task.strip()]
    place = models.checkpoint_folder(model)
    network = models.load_model(place, models.pick_device(device))
    if mask is not None:
        apply(bmt_core.load(mask), network, base_fingerprint=bmt_core.fingerprint(place))
    found = retained(
        network,
        models.load_tokenizer(place),
        names,
        task_path=task_path,
        limit=limit,
        batch_size=batch_size,
    )
    told = {"accuracy": found.accuracy, "mean": found.mean, "skipped": found.skipped}
    print(json.dumps(told, indent=1))


def _lines(found: list[Result]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for result in found:
        for name in result.right:
            score = result.score(name)
            low, high = score.interval
            p = f"{result.against('base', name).p_value:.2g}" if name != "base" else ""
            lines.append(
                (
                    *(result.suite, name, f"{100 * score.accuracy:.2f}"),
                    *(f"{100 * low:.1f} to {100 * high:.1f}", f"{_percent(score):.1f}"),
                    *(p, str(score.total)),
                )
            )
    return lines


def _percent(score: Any) -> float:
    return 100 * float(score.lenient) / float(score.total)


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `compare`, and their or GRPO's files.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("report"),
    title: Annotated[str, typer.Option(help="The page's title.")] = "Bit-Mask Tuning",
) -> None:
    """Write one page with tables and plots, and the plots as PNG."""
    from bmt_trainer.report import write

    print(write(runs, output, title))


def _print(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    table = Table(*header)
    for line in lines:
        table.add_row(*(re.sub(r"([\[\]])", r"\\\1", cell) for cell in line))
    Console().print(table)


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    app.command("compare")(compare)
    app.command("suites")(suites)
    app.command("retention")(retention)
    app.command("report")(report)
