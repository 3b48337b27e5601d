"""Commands of `bmt-train` that score a base or a mask: held-out examples, sets, retention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bmt_trainer.cli.paper import print_table
from bmt_trainer.process import keep_freed_memory

if TYPE_CHECKING:
    from bmt_trainer.evaluation.suites import Result

Model = Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(help="A mask file; without it, the base.", exists=True, dir_okay=False),
]
Engine = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(help="What answers in this process; auto: vLLM where it is installed."),
]
Server = Annotated[
    str | None,
    typer.Option(help="URL of a bmt-server that answers instead; its key: BMT_API_KEY."),
]
BaseName = Annotated[
    str | None, typer.Option(help="The base's name there, where it is not --model.")
]
MaskName = Annotated[str | None, typer.Option(help="The mask's name there.")]
Device = Annotated[str, typer.Option(help="Of transformers; to name one chooses it.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Prompts at once.")]
Seed = Annotated[int, typer.Option(min=0, help="As in training, to get its split.")]


def evaluate(
    model: Model,
    dataset: Annotated[str, typer.Option(help="As in `bmt-train sft`.")],
    mask: MaskFile = None,
    heldout: Annotated[int, typer.Option(min=1, help="Held-out examples.")] = 400,
    grader: Annotated[
        str | None, typer.Option(help="What is right, as in `bmt-train sft`.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved examples before each prompt.")] = 0,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    batch_size: AtOnce = 64,
    engine: Engine = "auto",
    server: Server = None,
    base_name: BaseName = None,
    mask_name: MaskName = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Score a base or a mask on the held-out examples."""
    from bmt_trainer.data import sources
    from bmt_trainer.data.examples import with_shots
    from bmt_trainer.evaluation.backends import by_options
    from bmt_trainer.evaluation.graders import find_for
    from bmt_trainer.evaluation.score import grade

    keep_freed_memory()
    judge = find_for(dataset, grader)
    split = sources.load(dataset, heldout=heldout, train=shots, seed=seed, system=system)
    examples = [with_shots(example, split.train) for example in split.heldout]
    models = by_options(
        model,
        mask,
        engine=engine,
        server=server,
        base_name=base_name,
        mask_name=mask_name,
        batch_size=batch_size,
        device=device,
    )
    answer = models.get("mask", models["base"])
    score = grade(answer([e.prompt for e in examples], max_new_tokens), examples, judge)
    print(json.dumps(score.to_json()) if as_json else score)


def suites(
    model: Model,
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
    batch_size: AtOnce = 64,
    engine: Engine = "auto",
    server: Server = None,
    base_name: BaseName = None,
    mask_name: MaskName = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Score a base, and a mask beside it, on the paper's evaluation sets."""
    from bmt_trainer.console import Display
    from bmt_trainer.evaluation import suites as sets
    from bmt_trainer.evaluation.backends import by_options

    keep_freed_memory()
    display = Display()
    chosen = sets.named(tasks)
    models = by_options(
        model,
        mask,
        engine=engine,
        server=server,
        base_name=base_name,
        mask_name=mask_name,
        batch_size=batch_size,
        device=device,
    )
    found: list[Result] = []
    for result in sets.run(
        chosen, models, folder=folder, limit=limit, max_new_tokens=max_new_tokens, seed=seed
    ):
        found.append(result)
        if result.skipped:
            display.say(f"{result.suite}: skipped, {result.skipped}")
    if as_json:
        print(json.dumps([result.to_json() for result in found]))
        return
    print_table(("set", "model", "accuracy, %", "95 %", "lenient, %", "p", "n"), _lines(found))


def retention(
    model: Model,
    mask: MaskFile = None,
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
    from bmt_trainer.evaluation.retention import retained
    from bmt_trainer.masking.apply import apply

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


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    app.command("eval")(evaluate)
    app.command("suites")(suites)
    app.command("retention")(retention)
