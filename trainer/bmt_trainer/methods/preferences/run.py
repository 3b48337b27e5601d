"""Parts of a run that training by pairs and by labeled answers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from bmt_core import Mask

from bmt_trainer.data import preview
from bmt_trainer.data.encoding import Encoded
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline, schedules
from bmt_trainer.methods.config import DpoConfig, KtoConfig
from bmt_trainer.methods.finish import finish
from bmt_trainer.methods.fit import trl_arguments
from bmt_trainer.methods.guards.changes import SCORES
from bmt_trainer.methods.pipeline import Inputs, Loaded, Logs, Rows
from bmt_trainer.methods.validation import of_run
from bmt_trainer.methods.validation.callback import Validation


class InTokens(Protocol):
    """A pair, or an answer, with the columns of TRL's trainer and the tokens of its longest row."""

    @property
    def columns(self) -> dict[str, Any]: ...

    @property
    def length(self) -> int: ...


T = TypeVar("T", bound=InTokens)


def with_steps(inputs: Inputs, rows: Sequence[T], what: str, a_step: int) -> Inputs:
    """`inputs` with the run's steps; says how many rows there are. Raises DataError if none is.

    what: the rows' noun in the plural; a_step: rows of a step.
    """
    dataset, display = inputs.config.dataset, inputs.display
    if not rows:
        raise DataError(
            f"{dataset} leaves no training {what.removesuffix('s')} of at most "
            f"{inputs.config.max_length} tokens; raise max_length or hold out fewer"
        )
    display.say(
        f"{inputs.base.model_id} on {inputs.device}: {len(rows)} training {what}, "
        f"{len(inputs.split.heldout)} held-out rows of {dataset}"
    )
    if len(rows) < a_step:
        display.say(
            f"a step takes {a_step:,} {what} (batch_size x gradient_accumulation x processes), and "
            f"there are {len(rows):,}: each step learns all of them"
        )
    of = f"{len(rows):,} {what} in steps of {a_step}"
    return schedules.with_steps(inputs, math.ceil(len(rows) / a_step), of)


def show(inputs: Inputs, row: Encoded, name: str, location: str) -> None:
    """Show a row token by token."""
    title = f"first {name}" + (f" ({location})" if location else "")
    shown = preview.of_row(inputs.tokenizer, row.columns, title, color=inputs.display.color)
    inputs.display.show(shown)


def within(inputs: Inputs, rows: Sequence[T], what: str, named: str) -> Rows:
    """The columns of rows within max_length; a line says how many are not.

    named: the rows' part in the run. Raises DataError if there are rows, and none is.
    """
    most = inputs.config.max_length
    kept = [row for row in rows if row.length <= most]
    if rows and not kept:
        raise DataError(
            f"{inputs.config.dataset}: each of the {len(rows)} {named} {what} is longer than "
            f"max_length, {most} tokens; raise it"
        )
    if left_out := len(rows) - len(kept):
        inputs.display.say(
            f"{named}: {left_out:,} of {len(rows):,} {what} are longer than max_length, {most:,} "
            "tokens, and are not scored"
        )
    return [row.columns for row in kept]


def finished(
    loaded: Loaded,
    attached: Attached,
    metadata: Mapping[str, Any],
    logs: Logs,
    validation: Validation,
) -> Mask:
    """The mask that `select` chooses, scored and written, with a history that has the scores."""
    metadata = {**metadata, **of_run.choose(loaded, attached, validation)}
    try:
        return finish(loaded, attached, metadata)
    finally:  # a push of the written mask may fail
        scores = {name: loaded.run.notes[name] for name in SCORES if name in loaded.run.notes}
        history: dict[str, Any] = {"steps": logs, "scores": scores}
        if validation.scores:
            history["validation"] = validation.scores
        pipeline.write_history(loaded, history)


def arguments(config: DpoConfig | KtoConfig, loaded: Loaded) -> dict[str, Any]:
    """Arguments of TRL's trainers of pairs and of labeled answers alike."""
    return {
        **trl_arguments(config, loaded.run.folder, loaded.model.device.type == "cpu"),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "beta": config.beta,
        "max_length": None,  # the rows are within it
        "precompute_ref_log_probs": False,
        # As the base: a reference with dropout would be another one in each pass.
        "disable_dropout": True,
        # The router of experts is frozen, so its balance is no part of the loss.
        "router_aux_loss_coef": 0.0,
    }
