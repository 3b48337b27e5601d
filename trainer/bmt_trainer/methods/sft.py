"""Supervised fine-tuning of a mask (paper, sections 4 and 5.6), on TRL's `SFTTrainer`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

from bmt_core import Mask
from transformers import TrainerCallback
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data import preview
from bmt_trainer.data.batching import grouped_by_length
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example
from bmt_trainer.data.fitting import fit as fit_rows
from bmt_trainer.distributed import join
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import packing, pipeline, schedules
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.finish import finish
from bmt_trainer.methods.fit import final_loss, fit_with_trl, trl_arguments
from bmt_trainer.methods.pipeline import Inputs, Loaded, Logs, Rows
from bmt_trainer.methods.trl_mixins import MaskedTraining, SharedRows
from bmt_trainer.methods.validation import losses, of_run
from bmt_trainer.process import world_size
from bmt_trainer.rewards.find import find_for


def train(config: SftConfig, display: Display | None = None) -> Mask:
    """Train a mask, evaluate it, and write it to `config.output`.

    `<output>.history.json` holds each step's loss, and that of validations. The mask's metadata
    holds the settings, the held-out scores of the base, of the first mask and of the trained one,
    and the versions of the libraries. The same settings on the same machine give the same mask,
    resumed or not. Raises TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        config = schedules.of_run(config, loaded)
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached)
        pipeline.initialize(loaded, attached)
        padding = int(loaded.tokenizer.pad_token_id)
        loss = partial(losses.of_completions, loaded.model, padding=padding)
        validation = of_run.by_loss(loaded, attached, loss)
        logs = fit(config, loaded, attached, rows, [validation]) if config.steps else []
        metadata = {"method": "sft", "train_examples": len(rows), "loss": final_loss(logs)}
        return finish(loaded, attached, metadata | of_run.choose(loaded, attached, validation))


def load(config: SftConfig, display: Display, *, scored: bool = True) -> tuple[Loaded, Rows]:
    """Encode the run's training examples, and load the run. scored: as in `pipeline.load`."""
    join(config.device, say=display.say)
    step = config.batch_size * config.gradient_accumulation * world_size()
    rows_of_step = step * (packing.ROWS_OF_A_SEQUENCE if config.packing else 1)
    inputs = pipeline.read(
        config,
        display,
        train_examples=schedules.wanted(config, rows_of_step) + config.validation,
        grader=find_for(config.dataset, config.grader),
        learn=config.learn if config.overlong == "drop" else None,
    )
    inputs.grader.try_on(inputs.split.heldout, display.say)
    validation, train = of_run.set_aside(config, inputs)
    rows = _rows(config, inputs, train)
    count = len(packing.sequences(rows, inputs.config.max_length)) if config.packing else len(rows)
    of = f"{count:,} {'sequences' if config.packing else 'rows'} in batches of {step}"
    # As transformers counts them: the last step of an epoch may accumulate less.
    passes = math.ceil(count / (config.batch_size * world_size()))
    a_epoch = math.ceil(passes / config.gradient_accumulation)
    inputs = schedules.with_steps(inputs, a_epoch, of)
    aside = _validation(config, inputs, validation) if validation else ()
    loaded = dataclasses.replace(pipeline.load(inputs, scored=scored), validation=aside)
    if config.packing:
        packing.require_separation(loaded.model)
    return loaded, rows


def _validation(config: SftConfig, inputs: Inputs, examples: Sequence[Example]) -> Rows:
    """The rows of the examples for validation, as training has them."""
    encoder = Encoder(inputs.tokenizer, config.learn)
    encoded = [(example.location, row) for example in examples for row in encoder.encode(example)]
    fitted = fit_rows(
        [row.columns for _, row in encoded],
        inputs.config.max_length,
        config.overlong,
        [location for location, _ in encoded],
    )
    if not fitted.rows:
        raise DataError(
            f"validation: nothing is left to learn of the {len(examples)} examples that are set "
            f"aside within max_length, {inputs.config.max_length:,} tokens; raise it, or set more"
        )
    for line in fitted.notes(inputs.config.max_length):
        inputs.display.say(f"validation: {line}")
    inputs.display.say(f"{len(fitted.rows):,} rows for validation")
    return fitted.rows


def _rows(config: SftConfig, inputs: Inputs, examples: Sequence[Example]) -> Rows:
    """Training examples as rows within max_length; shows the first. Raises DataError."""
    tokenizer, most, display = inputs.tokenizer, inputs.config.max_length, inputs.display
    encoder = Encoder(tokenizer, config.learn)
    encoded = [(example.location, row) for example in examples for row in encoder.encode(example)]
    locations = [location for location, _ in encoded]
    fitted = fit_rows([row.columns for _, row in encoded], most, config.overlong, locations)
    for line in (*encoder.lines(), *fitted.notes(most)):
        display.say(line)
    if not fitted.rows:
        raise DataError(
            f"{config.dataset} leaves no training example of at most {most} tokens; "
            "raise max_length or hold out fewer"
        )
    display.say(
        f"{inputs.base.model_id} on {inputs.device}: {len(fitted.rows)} training and "
        f"{len(inputs.split.heldout)} held-out examples of {config.dataset}"
    )
    step = config.batch_size * config.gradient_accumulation * world_size()
    if len(fitted.rows) < step and not config.packing:
        display.say(
            f"a step takes {step:,} examples (batch_size x gradient_accumulation x processes), and "
            f"there are {len(fitted.rows):,}: each step learns all of them"
        )
    if config.packing:
        display.say(packing.summary(packing.sequences(fitted.rows, most), most))
    first = locations[fitted.kept[0]]
    title = f"first example ({first})" if first else "first example"
    display.show(preview.of_row(tokenizer, fitted.rows[0], title, color=display.color))
    return fitted.rows


class MaskedSFTTrainer(SharedRows, MaskedTraining, SFTTrainer):
    """TRL's trainer under the soft mask (Eq. 6)."""


def fit(
    config: SftConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates on the rows' completions."""
    # Departure: mean over all label tokens of a step, TRL's; Eq. 1 sums over an answer's tokens.
    if config.group_by_length:
        step = config.batch_size * config.gradient_accumulation * world_size()
        rows = grouped_by_length(rows, step, config.steps, config.seed)
    arguments = TrlConfig(
        **trl_arguments(config, loaded.run.folder, loaded.model.device.type == "cpu"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_length=loaded.config.max_length,
        completion_only_loss=True,
        packing=config.packing,
        packing_strategy=packing.STRATEGY,
        train_sampling_strategy="sequential" if config.group_by_length else "random",
        # Departure: no balance of experts, because their router is frozen.
        router_aux_loss_coef=0.0,
    )
    return fit_with_trl(MaskedSFTTrainer, arguments, loaded, attached, rows, callbacks)
