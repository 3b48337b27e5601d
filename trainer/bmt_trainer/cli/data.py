"""Command of `bmt-train` that shows what a run would learn of a data set: data."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.settings import check_object

# Examples of a data set that is generated without end.
_GENERATED = 400
# Refused rows that are named.
_NAMED = 5


def data(
    source: Annotated[str, typer.Argument(help="Data set, as --dataset of a training method.")],
    model: Annotated[str, typer.Option(help="The base: a folder or a model of the Hub.")],
    method: Annotated[
        Literal["sft", "grpo", "dpo", "kto"],
        typer.Option(
            help="sft: prompts with their answers; grpo: prompts alone; dpo: chosen and rejected; "
            "kto: answers with a label, or chosen and rejected."
        ),
    ] = "sft",
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="Examples to read at most; default: all, of a task 400."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message before each prompt that has none.")
    ] = None,
    learn: Annotated[
        Literal["all", "last"], typer.Option(help="Assistant turns to learn, as in `sft`.")
    ] = "all",
    chat_template: Annotated[
        str | None, typer.Option(help="Chat template, as in `sft`: a file, or a shipped name.")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(help="Arguments of the chat template, as JSON.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Longest row, in tokens.")] = 1024,
    overlong: Annotated[
        Literal["drop", "truncate-left", "truncate-right", "error"],
        typer.Option(help="Rows above max_length, as in `sft`."),
    ] = "drop",
    packing: Annotated[bool, typer.Option(help="Count sequences of packed rows, too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Show the first rows token by token, read or learnt, and counts. Loads no weights."""
    from bmt_trainer import models
    from bmt_trainer.console import hide_library_progress
    from bmt_trainer.data import preview, report, sources
    from bmt_trainer.data.encoding import Encoder, complete_special_tokens, end_of_turn_text
    from bmt_trainer.data.examples import with_template_kwargs
    from bmt_trainer.data.labeled import LabelEncoder
    from bmt_trainer.data.pairs import PairEncoder
    from bmt_trainer.templates.chat_templates import (
        check_row_kwargs,
        check_template_kwargs,
        template_digest,
    )

    if method in ("dpo", "kto"):
        given = {"learn": learn != "all", "overlong": overlong != "drop", "packing": packing}
        _refuse_of_preferences(method, given)
    kwargs = None
    if chat_template_kwargs is not None:
        kwargs = check_object("chat_template_kwargs", chat_template_kwargs)
    folder = models.checkpoint_folder(model)
    tokenizer = models.load_tokenizer(folder, chat_template)
    check_template_kwargs(tokenizer, kwargs)
    complete_special_tokens(tokenizer)
    context = models.context_length(folder)
    most = max_length if context is None else min(max_length, context)
    split = sources.load(
        source,
        heldout=0,
        train=examples or _most(source),
        system=system,
        pairs=method == "dpo",
        labels=method == "kto",
    )
    # In the order of the source; a run shuffles.
    read = sorted(split.train, key=lambda example: _natural(example.location))
    check_row_kwargs(tokenizer, [(e.location, e.template_kwargs) for e in read])
    encoder: Encoder | PairEncoder | LabelEncoder = Encoder(tokenizer, learn)
    if method in ("dpo", "kto"):
        encoder = PairEncoder(tokenizer) if method == "dpo" else LabelEncoder(tokenizer)
    made = report.of_examples(
        with_template_kwargs(read, kwargs),
        split.counts,
        encoder,
        prompts_only=method == "grpo",
        max_length=most,
        overlong=overlong,
    )
    facts: dict[str, Any] = {
        "max_length": most,
        "model_context": context,
        "chat_template": template_digest(tokenizer),
        "end_of_turn": end_of_turn_text(tokenizer),
        "packed_sequences": None,
    }
    if packing and made.fitted.rows:
        from bmt_trainer.methods.packing import fill, sequences

        with hide_library_progress():
            packed = sequences(made.fitted.rows, most)
        facts["packed_sequences"] = len(packed)
    shown = list(made.shown(rows))
    if as_json:
        document = {
            "counts": {**made.to_json(), **facts},
            "rows": [
                {"location": where, **row, "pieces": preview.stretches(tokenizer, row)}
                for where, row in shown
            ],
        }
        print(json.dumps(document))
    else:
        lines = made.lines()
        if facts["packed_sequences"]:
            lines.append(("packed sequences", f"{len(packed):,}, {fill(packed, most):.0%} full"))
        if most < max_length:
            lines.append(("max_length", f"{most:,}, the model's context, not {max_length:,}"))
        template = facts["chat_template"]
        named = template[:12] if template else "none"
        lines.append(("chat template", f"{named}, a turn ends with {facts['end_of_turn']}"))
        _print(tokenizer, shown, lines, made.notes)
    _fail_if_refused(made.refused)
    if not made.fitted.rows:
        raise DataError(f"{source}: no row is left to train on")


def _refuse_of_preferences(method: str, given: Mapping[str, bool]) -> None:
    """Raise ConfigError for options that `method` has not, and that would change nothing."""
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(f"{name}: is for sft; {method} learns answers as they are")


def _print(
    tokenizer: Any, shown: list[tuple[str, Any]], lines: list[tuple[str, str]], notes: Any
) -> None:
    from rich.console import Console
    from rich.text import Text

    from bmt_trainer.console import Display
    from bmt_trainer.data import preview

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    display = Display(Console())
    for number, (where, row) in enumerate(shown, 1):
        title = f"row {number}" + (f" ({where})" if where else "")
        display.show(preview.of_row(tokenizer, row, title, color=display.color))
        display.say("")
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        display.show(Text.assemble((name.ljust(width), "bold"), "  ", value))
    for note in notes:
        display.say(note)


def _fail_if_refused(refused: Any) -> None:
    if not refused:
        return
    more = len(refused) - _NAMED
    for line in refused[:_NAMED]:
        print(f"bmt-train: {line}", file=sys.stderr)
    if more > 0:
        print(f"bmt-train: and {more:,} more rows", file=sys.stderr)
    raise typer.Exit(1)


def _most(source: str) -> int:
    """The number of examples to read: all that a stored data set has."""
    from bmt_trainer.data.sources import endless

    return _GENERATED if endless(source) is not None else 1 << 30


def _natural(location: str) -> list[tuple[int, str]]:
    """A key by which line 9 comes before line 10."""
    parts = re.split(r"(\d+)", location)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def add(app: typer.Typer) -> None:
    """Add the command to `bmt-train`."""
    app.command("data")(data)
