"""Commands of `bmt-train` that score a base or a mask: eval, suites, retention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import bmt_core
import typer

from bmt_trainer.cli.tables import print_table
from bmt_trainer.errors import ConfigError
from bmt_trainer.process import keep_freed_memory
from bmt_trainer.settings import check_object

Model = Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(help="Mask file; without it, the base is scored.", exists=True, dir_okay=False),
]
Engine = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(
        help="Backend in this process; auto: vLLM if it is installed and --device is auto."
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        help="URL of a bmt-server to use instead of a backend in this process; its API key: "
        "BMT_API_KEY."
    ),
]
BaseName = Annotated[
    str | None, typer.Option(help="Name of the base on the server; default: --model.")
]
MaskName = Annotated[str | None, typer.Option(help="Name of the mask on the server.")]
Device = Annotated[str, typer.Option(help="Device for the transformers backend.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts in a batch.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the split; use that of the training run.")]
ChatTemplate = Annotated[
    str | None,
    typer.Option(help="Chat template of the prompts: a Jinja file, or the name of a shipped one."),
]
TemplateKwargs = Annotated[
    str | None, typer.Option(help="Arguments of the chat template, as JSON.")
]
ThoughtsOption = Annotated[
    str | None,
    typer.Option(
        "--thoughts",
        help="Delimiters of thoughts, which are not graded: 'OPENING CLOSING', or off to grade "
        "them too; default: <think> </think> and those of the chat template.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _object(text: str | None) -> dict[str, Any] | None:
    return None if text is None else check_object("chat_template_kwargs", text)


def evaluate(
    model: Model,
    dataset: Annotated[
        str | None, typer.Option(help="Data set, as in `bmt-train sft`; needed without --like.")
    ] = None,
    mask: MaskFile = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Repeat the evaluation of this mask's own run, by its metadata: data, split, "
            "grader, prompts, batch size and engine; other options change it. --mask defaults to "
            "it.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    heldout: Annotated[
        int | None, typer.Option(min=1, help="Held-out examples; default: 400.")
    ] = None,
    heldout_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Instead: this share of a file's examples."),
    ] = None,
    heldout_dataset: Annotated[
        str | None, typer.Option(help="Hold out from this data set instead.")
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="Grader or rewards, as --reward of `bmt-train grpo`; see docs/training/rewards.md."
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved examples before each prompt.")] = 0,
    system: Annotated[
        str | None, typer.Option(help="System message of prompts that have none.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer; default: 64.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts in a batch; default: 64.")
    ] = None,
    engine: Engine = "auto",
    server: Server = None,
    base_name: BaseName = None,
    mask_name: MaskName = None,
    device: Device = "auto",
    chat_template: ChatTemplate = None,
    chat_template_kwargs: TemplateKwargs = None,
    thoughts: ThoughtsOption = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the split; use that of the training run; default: 0."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a base or a mask on the held-out examples."""
    from bmt_trainer.cli import repeat
    from bmt_trainer.console import Display
    from bmt_trainer.data import sources
    from bmt_trainer.data.encoding import Encoder
    from bmt_trainer.data.examples import with_shots, with_template_kwargs
    from bmt_trainer.evaluation.backends import by_options
    from bmt_trainer.evaluation.score import grade, require_answers
    from bmt_trainer.methods.guards.contents import digest_of_examples
    from bmt_trainer.models import checkpoint_folder, load_tokenizer, local_folder
    from bmt_trainer.rewards.find import find, find_for

    keep_freed_memory()
    display = Display()
    repeated = repeat.Repeated({}) if like is None else repeat.of_mask(like)
    given = {
        **{"dataset": dataset, "heldout": heldout, "heldout_share": heldout_share},
        **{"heldout_dataset": heldout_dataset, "grader": grader, "system": system, "seed": seed},
        **{"max_new_tokens": max_new_tokens, "batch_size": batch_size, "thoughts": thoughts},
        **{"chat_template": chat_template, "chat_template_kwargs": _object(chat_template_kwargs)},
    }
    options = {
        **{"heldout": 400, "max_new_tokens": 64, "batch_size": 64, "seed": 0},
        **repeated.options,
        **{name: value for name, value in given.items() if value is not None},
    }
    if "dataset" not in options:
        raise ConfigError("dataset: name one by --dataset, or the run to repeat by --like MASK.bmt")
    if heldout is not None and heldout_share is None:
        options.pop("heldout_share", None)
    if dataset is not None and heldout_dataset is None:
        options.pop("heldout_dataset", None)  # the run's, which would hide the given one
    if like is not None:
        if mask is None and server is None:
            mask = like
        if engine == "auto" and server is None:
            engine = "transformers"
    tokens, kwargs = options["max_new_tokens"], options.get("chat_template_kwargs")
    template, name = options.get("chat_template"), options["dataset"]
    text = options.get("grader")
    overlong = repeated.overlong if grader is None else 0
    rewards = find(text, overlong=overlong) if text and overlong else find_for(name, text)
    split = sources.load(
        options.get("heldout_dataset", name),
        heldout=options["heldout"],
        train=shots,
        seed=options["seed"],
        system=options.get("system"),
        share=options.get("heldout_share"),
    )
    examples = [with_shots(example, split.train) for example in split.heldout]
    if server is None or any(e.reply for e in examples) or local_folder(model) is not None:
        # Answers with calls are compared as the chat template writes them.
        encoder = Encoder(load_tokenizer(checkpoint_folder(model), template))
        examples = [encoder.checked(e) for e in with_template_kwargs(examples, kwargs)]
    digest = repeated.evaluation.get("heldout")
    if digest is not None and digest != digest_of_examples(examples):
        display.say(
            f"warning: the held-out examples are not those of {like}: its data has changed, or an "
            "option chooses others"
        )
    require_answers(examples, rewards, "score it by a reward of your own (--grader)")
    if rewards.needs_tokenizer or repeated.options:
        tokenizer = load_tokenizer(checkpoint_folder(model), template)
        reading: Literal["strict", "lenient"] = (
            "lenient" if options.get("reading") == "lenient" else "strict"
        )
        rewards = rewards.for_model(tokenizer, tokens, reading, options.get("thoughts"))
    rewards.try_on(examples, display.say)
    models = by_options(
        model,
        mask,
        engine=engine,
        server=server,
        base_name=base_name,
        mask_name=mask_name,
        batch_size=options["batch_size"],
        device=device,
        chat_template=template,
        template_kwargs=kwargs,
        thoughts=options.get("thoughts"),
        fp32=repeated.precision == "fp32",
    )
    generate = models.get("mask", models["base"])
    score = grade(generate(examples, tokens), examples, rewards)
    if like is not None and mask == like:
        used = "server" if server else engine
        display.say(
            repeat.compared(repeated, score.exact, score.total, used, options["batch_size"])
        )
    print(json.dumps(score.to_json()) if as_json else score)


def suites(
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated sets: gsm8k, gsm8k-boxed, math500, minerva, olympiadbench, "
            "aime24, amc23, mmlu-pro [SUBJECT], bbeh [SUBTASK], toolalpaca, toolalpaca-simulated."
        ),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(help="Mask file, compared with the base.", exists=True, dir_okay=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--data", help="Folder of the sets' files; default: the Hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each set.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Upper limit of the sets' own answer lengths.")
    ] = None,
    batch_size: BatchSize = 64,
    engine: Engine = "auto",
    server: Server = None,
    base_name: BaseName = None,
    mask_name: MaskName = None,
    device: Device = "auto",
    chat_template: ChatTemplate = None,
    chat_template_kwargs: TemplateKwargs = None,
    thoughts: ThoughtsOption = None,
    seed: Seed = 0,
    duplicates: Annotated[
        bool,
        typer.Option(
            "--duplicates",
            help="Keep rows that repeat a prompt, as the paper's tables 9 and 10 count.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a base, and optionally a mask against it, on the paper's evaluation sets."""
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
        chat_template=chat_template,
        template_kwargs=_object(chat_template_kwargs),
        thoughts=thoughts,
    )
    results = []
    try:
        for result in sets.run(
            chosen,
            models,
            folder=folder,
            limit=limit,
            max_new_tokens=max_new_tokens,
            seed=seed,
            duplicates=duplicates,
        ):
            results.append(result)
            display.say(str(result))
    finally:  # also of what Ctrl-C leaves
        if as_json:
            print(json.dumps([result.to_json() for result in results]))
        elif results:
            print_table(sets.HEADER, [row for result in results for row in result.cells()])
    scored = [result for result in results if result.skipped is None]
    if not scored or any(result.failed for result in results):
        display.say(f"error: {len(results) - len(scored)} of {len(results)} sets have no score")
        raise typer.Exit(1)


def retention(
    model: Model,
    mask: MaskFile = None,
    tasks: Annotated[
        str, typer.Option(help="Comma-separated tasks of lm-eval.")
    ] = "hellaswag,mmlu,truthfulqa_mc2,winogrande,ifeval,humaneval",
    task_path: Annotated[
        Path | None, typer.Option(help="Folder of additional lm-eval task files.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    batch_size: BatchSize = 8,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "auto",
    run_model_code: Annotated[
        bool,
        typer.Option(
            "--run-model-code",
            help="Run the programs that the model writes for humaneval, in a sandbox.",
        ),
    ] = False,
) -> None:
    """Score general skills by lm-eval, if it is installed."""
    from bmt_core.config import arithmetic, config_warning

    from bmt_trainer import models
    from bmt_trainer.console import Display
    from bmt_trainer.evaluation.retention import retained
    from bmt_trainer.masking.apply import apply

    names = [task.strip() for task in tasks.split(",") if task.strip()]
    folder = models.checkpoint_folder(model)
    network = models.load_model(folder, models.pick_device(device))
    if mask is not None:
        loaded = bmt_core.load(mask)
        apply(loaded, network, base_fingerprint=bmt_core.fingerprint(folder))
        if (warning := config_warning(loaded.metadata, arithmetic(folder))) is not None:
            Display().say(warning)
    scores = retained(
        network,
        models.load_tokenizer(folder),
        names,
        task_path=task_path,
        limit=limit,
        batch_size=batch_size,
        run_model_code=run_model_code,
    )
    summary = {"accuracy": scores.accuracy, "mean": scores.mean, "skipped": scores.skipped}
    print(json.dumps(summary, indent=1))
    for task, reason in scores.skipped.items():
        Display().say(f"{task} has no score, so there is no mean: {reason}")
    if not scores.accuracy:
        raise typer.Exit(1)


def add(app: typer.Typer) -> None:
    """Add the commands to `bmt-train`."""
    app.command("eval")(evaluate)
    app.command("suites")(suites)
    app.command("retention")(retention)
