"""Training of a mask by labeled answers, KTO (Ethayarajh et al. 2024), on TRL's `KTOTrainer`.

The reference policy is the model with its mask off, so there is no second model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from bmt_core import Mask
from transformers import TrainerCallback
from trl import KTOConfig as TrlConfig
from trl import KTOTrainer

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data.examples import Example
from bmt_trainer.data.labeled import LabeledAnswer, LabelEncoder, contradictions
from bmt_trainer.distributed import join
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline, schedules
from bmt_trainer.methods.config import KtoConfig
from bmt_trainer.methods.fit import final_loss, fit_with_trl
from bmt_trainer.methods.pipeline import Loaded, Logs, Rows
from bmt_trainer.methods.preferences import run
from bmt_trainer.methods.preferences.labels import LabelScores
from bmt_trainer.methods.preferences.losses import LabelLoss, with_partners
from bmt_trainer.methods.preferences.reference import AgainstBase
from bmt_trainer.methods.trl_mixins import SharedRows
from bmt_trainer.methods.validation import of_run
from bmt_trainer.process import world_size
from bmt_trainer.rewards.find import find_for

# Ratio of the weighted numbers of wanted and unwanted answers (TRL, after KTO's Eq. 8).
_BALANCED = (1.0, 4 / 3)


def train(config: KtoConfig, display: Display | None = None) -> Mask:
    """Train a mask by labeled answers, score it on held-out ones, and write it.

    `<output>.history.json` holds each step's loss, the divergence `kl` that it is measured from and
    TRL's `rewards/…` (times β), the loss of validations, and the held-out scores, which the mask's
    metadata holds too. The same settings on the same machine give the same mask, resumed or not.
    Raises TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        config = schedules.of_run(config, loaded)
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached)
        pipeline.initialize(loaded, attached)
        padding = int(loaded.tokenizer.pad_token_id)
        loss = LabelLoss(config, loaded.model, attached, padding)
        validation = of_run.by_loss(loaded, attached, loss)
        logs = fit(config, loaded, attached, rows, [validation]) if config.steps else []
        metadata = {"method": "kto", "train_examples": len(rows), "loss": final_loss(logs)}
        return run.finished(loaded, attached, metadata, logs, validation)


def load(config: KtoConfig, display: Display) -> tuple[Loaded, Rows]:
    """Encode the run's answers, and load the run. Raises DataError for a row without a label."""
    # Departure: an answer above max_length is left out; TRL cuts it.
    join(config.device, say=display.say)
    a_step = config.batch_size * config.gradient_accumulation * world_size()
    inputs = pipeline.read(
        config,
        display,
        train_examples=schedules.wanted(config, a_step) + config.validation,
        grader=find_for(config.dataset, None),
        preferences="label",
    )
    encoder = LabelEncoder(inputs.tokenizer)

    def encoded(examples: Sequence[Example]) -> list[LabeledAnswer]:
        return [answer for example in examples for answer in encoder.encode(example)]

    validation, examples = of_run.set_aside(config, inputs)
    aside = encoded(validation)
    if len(aside) == 1:
        raise DataError(
            "validation: one answer is set aside, and its loss is measured from other answers that "
            "are; set 2 or more"
        )
    answers = encoded(examples)
    inputs = run.with_steps(inputs, answers, "answers", a_step)
    for line in _labels(config, answers):
        display.say(line)
    first = answers[0]
    name = f"answer, {'wanted' if first.wanted else 'unwanted'}"
    run.show(inputs, first.row, name, examples[0].location)
    heldout = run.within(inputs, encoded(inputs.split.heldout), "answers", "held out")
    for line in encoder.lines():
        display.say(line)
    loaded = pipeline.load(inputs)
    padding = int(inputs.tokenizer.pad_token_id)
    return (
        dataclasses.replace(
            loaded,
            score=LabelScores(loaded.model, heldout, padding, loaded.run, display),
            validation=with_partners([answer.columns for answer in aside]),
        ),
        [answer.columns for answer in answers],
    )


def _labels(config: KtoConfig, answers: Sequence[LabeledAnswer]) -> Iterator[str]:
    """Lines on the labels: their numbers, and weights that would balance them."""
    good = sum(answer.wanted for answer in answers)
    bad = len(answers) - good
    yield f"labels: {good:,} answers are wanted, {bad:,} are not"
    if not good or not bad:
        missing = "unwanted" if good else "wanted"
        yield f"warning: no answer is {missing}, so the mask learns from one label alone"
        return
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad)
    low, high = _BALANCED
    if not low - 1e-9 <= ratio <= high + 1e-9:
        least, most = (bound * config.undesirable_weight * bad / good for bound in _BALANCED)
        yield (
            f"warning: wanted answers weigh {ratio:.3g} times the unwanted ones in all, where TRL "
            f"advises 1 to 4/3: desirable_weight {least:.3g} to {most:.3g}"
        )
    if both := contradictions(answers):
        yield f"warning: answers that one prompt has as wanted and as unwanted: {both:,}"


class MaskedKTOTrainer(SharedRows, AgainstBase, KTOTrainer):
    """TRL's trainer of labeled answers, with the base as its reference.

    Its point of reference is the mean of the processes' means, which is that of the whole batch
    because `in_batches` gives all of them as many answers.
    """


def in_batches(rows: Rows, size: int, count: int, seed: int) -> list[dict[str, Any]]:
    """`size * count` rows in batches, in one random order an epoch, each with its partner.

    Every batch is full: its mean divergence is the point of reference, which an answer alone would
    be itself.
    """
    random = Random(seed)
    order: list[int] = []
    while len(order) < size * count:
        epoch = list(range(len(rows)))
        random.shuffle(epoch)
        order += epoch
    chosen = [rows[at] for at in order[: size * count]]
    return [
        row for at in range(0, len(chosen), size) for row in with_partners(chosen[at : at + size])
    ]


def fit(
    config: KtoConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates on the answers."""
    # Departure: TRL keeps the rows' order, which has all chosen answers of pairs first.
    # Batches are of all processes, so an answer's partner may be of another one.
    size, count = config.batch_size * world_size(), config.steps * config.gradient_accumulation
    batches = in_batches(rows, size, count, config.seed)
    arguments = TrlConfig(
        **run.arguments(config, loaded),
        loss_type="kto",
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        train_sampling_strategy="sequential",
    )
    return fit_with_trl(MaskedKTOTrainer, arguments, loaded, attached, batches, callbacks)
