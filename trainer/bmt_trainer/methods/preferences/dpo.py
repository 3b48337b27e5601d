"""Direct preference optimization of a mask (Rafailov et al. 2023), on TRL's `DPOTrainer`.

The reference policy is the model with its mask off, so there is no second model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bmt_core import Mask
from torch import nn
from transformers import TrainerCallback
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data import preview
from bmt_trainer.data.pairs import EncodedPair, PairEncoder
from bmt_trainer.distributed import join
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline
from bmt_trainer.methods.config import DpoConfig
from bmt_trainer.methods.finish import SCORES, finish
from bmt_trainer.methods.fit import final_loss, fit_with_trl, trl_arguments
from bmt_trainer.methods.pipeline import Inputs, Loaded, Logs, Rows
from bmt_trainer.methods.preferences.scores import PairScores
from bmt_trainer.methods.trl_mixins import BaseReference, MaskedTraining
from bmt_trainer.rewards.find import find_for


def train(config: DpoConfig, display: Display | None = None) -> Mask:
    """Train a mask by preference pairs, score it on held-out ones, and write it.

    `<output>.history.json` holds each step's loss, margin and accuracy (TRL's `rewards/…`, times
    β), and the held-out scores, which the mask's metadata holds too: of the base, the first mask
    and the trained one. The same settings on the same machine give the same mask, resumed or not.
    Raises TrainerError and bmt_core.BmtError.
    """
    with hide_library_progress():
        loaded, rows = load(config, display or Display())
        attached = pipeline.attach(loaded)
        pipeline.score_base(loaded, attached)
        pipeline.initialize(loaded, attached)
        logs = fit(config, loaded, attached, rows) if config.steps else []
        metadata = {"method": "dpo", "train_examples": len(rows), "loss": final_loss(logs)}
        try:
            return finish(loaded, attached, metadata)
        finally:  # a push of the written mask may fail
            scores = {name: loaded.run.notes[name] for name in SCORES if name in loaded.run.notes}
            pipeline.write_history(loaded, {"steps": logs, "scores": scores})


def load(config: DpoConfig, display: Display) -> tuple[Loaded, Rows]:
    """Encode the run's pairs, and load the run. Raises DataError for a row that is none."""
    # Departure: a pair above max_length is left out whole; TRL cuts its answers.
    join(config.device, say=display.say)
    used = config.steps * config.batch_size * config.gradient_accumulation
    inputs = pipeline.read(
        config,
        display,
        train_examples=config.train_examples or max(used, config.calibration_prompts),
        grader=find_for(config.dataset, None),
        pairs=True,
    )
    encoder = PairEncoder(inputs.tokenizer)
    rows = _training(config, inputs, encoder)
    heldout = _heldout(config, inputs, encoder)
    for line in encoder.lines():
        display.say(line)
    loaded = pipeline.load(inputs)
    padding = int(inputs.tokenizer.pad_token_id)
    scores = PairScores(loaded.model, heldout, padding, loaded.run, display)
    return dataclasses.replace(loaded, score=scores), rows


def _training(config: DpoConfig, inputs: Inputs, encoder: PairEncoder) -> Rows:
    """The training pairs, none above max_length; shows the first. Raises DataError."""
    display, examples = inputs.display, inputs.split.train
    if not examples:
        raise DataError(
            f"{config.dataset} leaves no training pair of at most {inputs.config.max_length} "
            "tokens; raise max_length or hold out fewer"
        )
    pairs = [encoder.encode(example) for example in examples]
    display.say(
        f"{inputs.base.model_id} on {inputs.device}: {len(pairs)} training and "
        f"{len(inputs.split.heldout)} held-out pairs of {config.dataset}"
    )
    step = config.batch_size * config.gradient_accumulation
    if len(pairs) < step:
        display.say(
            f"a step takes {step:,} pairs (batch_size x gradient_accumulation), and there are "
            f"{len(pairs):,}: each step learns all of them"
        )
    _show(inputs, pairs[0], examples[0].location)
    return [pair.columns for pair in pairs]


def _show(inputs: Inputs, pair: EncodedPair, location: str) -> None:
    for name, row in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        title = f"first pair, {name}" + (f" ({location})" if location else "")
        shown = preview.of_row(inputs.tokenizer, row.columns, title, color=inputs.display.color)
        inputs.display.show(shown)


def _heldout(config: DpoConfig, inputs: Inputs, encoder: PairEncoder) -> Rows:
    """The held-out pairs within max_length; a line says how many are not. Raises DataError."""
    most, pairs = inputs.config.max_length, [encoder.encode(e) for e in inputs.split.heldout]
    kept = [pair for pair in pairs if pair.length <= most]
    if pairs and not kept:
        raise DataError(
            f"{config.dataset}: each of the {len(pairs)} held-out pairs is longer than max_length, "
            f"{most} tokens; raise it"
        )
    if left_out := len(pairs) - len(kept):
        inputs.display.say(
            f"held out: {left_out:,} of {len(pairs):,} pairs are longer than max_length, {most:,} "
            "tokens, and are not scored"
        )
    return [pair.columns for pair in kept]


class _NoReference(nn.Module):
    """A reference's place while TRL makes its trainer: without one, it loads the base again."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Compute nothing."""


class MaskedDPOTrainer(MaskedTraining, DPOTrainer):
    """TRL's trainer under the soft mask (Eq. 6), on pairs that are tokenized already.

    The reference is the policy with its mask off: the base, bit for bit, in the batches and the
    arithmetic of the policy.
    """

    # Departure: TRL's reference is a second model.

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, ref_model=_NoReference(model.config), **kwargs)
        self.ref_model = BaseReference(self.model, self.attached.state)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset


def fit(
    config: DpoConfig,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback] = (),
) -> Logs:
    """Train the attached gates on the pairs."""
    arguments = TrlConfig(
        **trl_arguments(config, loaded.run.folder, loaded.model.device.type == "cpu"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        beta=config.beta,
        loss_type=["sigmoid"],
        max_length=None,  # the rows are within it
        precompute_ref_log_probs=False,
        # As the base: a reference with dropout would be another one in each pass.
        disable_dropout=True,
        # The router of experts is frozen, so its balance is no part of the loss.
        router_aux_loss_coef=0.0,
    )
    return fit_with_trl(MaskedDPOTrainer, arguments, loaded, attached, rows, callbacks)
