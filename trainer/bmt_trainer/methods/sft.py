"""Supervised fine-tuning of a mask (paper, sections 4 and 5.6), on TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bmt_trainer.distributed import join, processes
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.graders import find_for
from bmt_trainer.methods.config import RunConfig
from bmt_trainer.settings import option

# torch, transformers and TRL take seconds to import, and `--help` needs only the settings.
if TYPE_CHECKING:
    from bmt_core import Mask
    from transformers import TrainerCallback

    from bmt_trainer.console import Display
    from bmt_trainer.methods.session import Logs, Prepared, Session


@dataclass(frozen=True, kw_only=True)
class SftConfig(RunConfig):
    """Settings of `train`. The defaults are the paper's. Raises ConfigError."""

    batch_size: int = option("Examples per device and forward pass.", 4, least=1)
    gradient_accumulation: int = option("Forward passes per optimizer step.", 1, least=1)
    group_by_length: bool = option(
        "Put examples of like length in one step: less padding, so faster steps.", False
    )
    grader: str | None = option(
        "What is right in evaluation: words, number, gsm8k, math, letter, bbeh, tools, or "
        "FILE.py:FUNCTION; default: by the data set's form, else words.",
        None,
    )


def train(config: SftConfig, display: Display | None = None) -> Mask:
    """Train a mask, evaluate it, and write it to `config.output`.

    Its metadata holds the settings, the held-out scores of the base, of the mask that training
    started from, and of the trained one, and the versions of the libraries. The same settings on
    the same machine give the same mask, resumed or not. Raises TrainerError and
    bmt_core.BmtError.
    """
    from bmt_trainer.console import Display
    from bmt_trainer.process import only_our_progress

    with only_our_progress():
        return _train(config, display or Display())


def _train(config: SftConfig, display: Display) -> Mask:
    prepared = prepare(config, display)
    prepared.session.start()
    logs = prepared.fit(())
    return prepared.session.finish({**prepared.told, "loss": round(final_loss(logs), 6)})


def prepare(config: SftConfig, display: Display, *, scored: bool = True) -> Prepared:
    """Everything before what is trained starts. scored: as in `Session.open`."""
    from bmt_trainer.data.encoding import training_rows
    from bmt_trainer.methods.session import Prepared, Session

    join(config)
    used = config.steps * config.batch_size * config.gradient_accumulation * processes()
    session = Session.open(
        config,
        display,
        train_examples=config.train_examples or max(used, config.calibration_prompts),
        grader=find_for(config.dataset, config.grader),
        scored=scored,
    )
    split = session.split
    rows = training_rows(session.tokenizer, split.train, config.max_length)
    if not rows:
        raise DataError(
            f"{config.dataset} leaves no training example of at most {config.max_length} tokens; "
            "raise max_length or hold out fewer"
        )
    if len(rows) < len(split.train):
        display.say(f"left out {len(split.train) - len(rows)} examples that exceed max_length")
    display.say(
        f"{session.base.model_id} on {session.model.device}: {len(rows)} training and "
        f"{len(split.heldout)} held-out examples of {config.dataset}"
    )
    return Prepared(
        session=session,
        fit=lambda callbacks: _fit(config, session, rows, callbacks),
        told={"method": "sft", "train_examples": len(rows)},
    )


def _fit(
    config: SftConfig,
    session: Session,
    rows: Sequence[Mapping[str, list[int]]],
    callbacks: Sequence[TrainerCallback],
) -> Logs:
    from bmt_trainer.methods.config import trl_arguments
    from bmt_trainer.methods.trl_setup import prepare_trl

    prepare_trl()
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    from bmt_trainer.data.encoding import grouped_by_length
    from bmt_trainer.methods.fit import fit
    from bmt_trainer.methods.trl_mixins import MaskedTraining

    class Trainer(MaskedTraining, SFTTrainer):
        pass

    if config.group_by_length:
        step = config.batch_size * config.gradient_accumulation * processes()
        rows = grouped_by_length(rows, step, config.steps, config.seed)
    arguments = TrlConfig(
        **trl_arguments(config, session.run.folder, session.model.device.type == "cpu"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_length=config.max_length,
        completion_only_loss=True,
        train_sampling_strategy="sequential" if config.group_by_length else "random",
    )
    return fit(config, session, Trainer, arguments, rows, callbacks)


def final_loss(logs: Logs) -> float:
    """The mean of the last tenth: one batch of four says little."""
    losses = [entry["loss"] for entry in logs]
    tail = losses[-max(1, len(losses) // 10) :]
    return float(sum(tail) / len(tail))
