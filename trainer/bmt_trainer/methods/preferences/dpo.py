"""Direct preference optimization of a mask (Rafailov et al. 2023), on TRL's `DPOTrainer`.

The reference policy is the model with its mask off, so there is no second model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bmt_core import Mask
from transformers import TrainerCallback
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data.pairs import PairEncoder
from bmt_trainer.distributed import join
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline, schedules
from bmt_trainer.methods.config import DpoConfig
from bmt_trainer.methods.fit import final_loss, fit_with_trl
from bmt_trainer.methods.pipeline import Loaded, Logs, Rows
from bmt_trainer.methods.preferences import run
from bmt_trainer.methods.preferences.losses import PairLoss
from bmt_trainer.methods.preferences.reference import AgainstBase
from bmt_trainer.methods.preferences.scores import PairScores
from bmt_trainer.methods.preferences.shares import SharedPairs
from bmt_trainer.methods.validation import of_run
from bmt_trainer.process import world_size
from bmt_trainer.rewards.find import find_for


def train(config: DpoConfig, display: Display | None = None) -> Mask:
    """Train a mask by preference pairs, score it on held-out ones, and write it.

    `<output>.history.json` holds each step's loss, margin and accuracy (TRL's `rewards/…`, times
    β), the loss of validations, and the held-out scores, which the mask's metadata holds too: of
    the base, the first mask and the trained one. The same settings on the same machine give the
    same mask, resumed or not. Raises TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        config = schedules.of_run(config, loaded)
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached)
        pipeline.initialize(loaded, attached)
        padding = int(loaded.tokenizer.pad_token_id)
        loss = PairLoss(config, loaded.model, attached, padding)
        validation = of_run.by_loss(loaded, attached, loss)
        logs = fit(config, loaded, attached, rows, [validation]) if config.steps else []
        metadata = {"method": "dpo", "train_examples": len(rows), "loss": final_loss(logs)}
        return run.finished(loaded, attached, metadata, logs, validation)


def load(config: DpoConfig, display: Display) -> tuple[Loaded, Rows]:
    """Encode the run's pairs, and load the run. Raises DataError for a row that is none."""
    # Departure: a pair above max_length is left out whole; TRL cuts its answers.
    join(config.device, say=display.say)
    a_step = config.batch_size * config.gradient_accumulation * world_size()
    inputs = pipeline.read(
        config,
        display,
        train_examples=schedules.wanted(config, a_step) + config.validation,
        grader=find_for(config.dataset, None),
        preferences="pair",
    )
    encoder = PairEncoder(inputs.tokenizer)
    validation, examples = of_run.set_aside(config, inputs)
    pairs = [encoder.encode(example) for example in examples]
    inputs = run.with_steps(inputs, pairs, "pairs", a_step)
    for name, row in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected)):
        run.show(inputs, row, f"pair, {name}", examples[0].location)
    heldout = [encoder.encode(example) for example in inputs.split.heldout]
    rows = run.within(inputs, heldout, "pairs", "held out")
    for line in encoder.lines():
        display.say(line)
    loaded = pipeline.load(inputs)
    padding = int(inputs.tokenizer.pad_token_id)
    return (
        dataclasses.replace(
            loaded,
            score=PairScores(loaded.model, rows, padding, loaded.run, display),
            validation=[encoder.encode(example).columns for example in validation],
        ),
        [pair.columns for pair in pairs],
    )


class MaskedDPOTrainer(SharedPairs, AgainstBase, DPOTrainer):
    """TRL's trainer of pairs, with the base as its reference."""


def fit(
    config: DpoConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates on the pairs."""
    arguments = TrlConfig(
        **run.arguments(config, loaded),
        loss_type=["sigmoid"],
    )
    return fit_with_trl(MaskedDPOTrainer, arguments, loaded, attached, rows, callbacks)
