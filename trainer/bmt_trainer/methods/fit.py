"""One training run by a trainer of TRL, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from bmt_trainer.console import ShowSteps
from bmt_trainer.distributed import keep_gates_fp32, rank
from bmt_trainer.methods.callbacks import Anneal
from bmt_trainer.methods.config import RunConfig, one_replica
from bmt_trainer.methods.trl_mixins import save_gates_only

if TYPE_CHECKING:
    from bmt_trainer.methods.session import Logs, Session


def fit(
    config: RunConfig,
    session: Session,
    trainer_class: type[Any],
    arguments: Any,
    rows: Sequence[Mapping[str, Any]],
    callbacks: Sequence[TrainerCallback],
    *,
    figure: str = "loss",
    ready: Callable[[Any], None] = lambda trainer: None,
    **given: Any,
) -> Logs:
    """Train what the session has attached, or go on from the run's last checkpoint.

    trainer_class: a TRL trainer with the masks' hooks; arguments, given: its settings; rows: what
    it reads; figure: the number of a step that is shown, and that tells the logs of steps from
    others; ready: called with the trainer before it starts.
    """
    attached, run = session.attached, session.run
    if attached.layers:
        save_gates_only(session.model, attached)
    checkpoint = run.last_checkpoint()
    one_replica(arguments)
    # On the class: a trainer may ask for them while it is made.
    trainer_class.attached, trainer_class.reg_lambda = attached, config.reg_lambda
    with session.display.stage("train", config.steps, run.steps_done()) as advance:
        trainer = trainer_class(
            model=session.model,
            args=arguments,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=session.tokenizer,
            callbacks=[
                Anneal(attached.state, config.alpha_start, config.alpha_end),
                *callbacks,
                ShowSteps(advance, figure),
            ],
            **given,
        )
        keep_gates_fp32(trainer)
        ready(trainer)
        trainer.remove_callback(PrinterCallback)
        # Processes that sample would all draw alike without their rank.
        transformers.set_seed(config.seed + rank())
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return [dict(entry) for entry in trainer.state.log_history if figure in entry]
