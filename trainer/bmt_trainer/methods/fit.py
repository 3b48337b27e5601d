"""Training with a TRL trainer, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from bmt_trainer.console import StepProgress
from bmt_trainer.distributed import keep_gates_fp32
from bmt_trainer.errors import RewardError, RolloutError, TrainerError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import schedules, trackers
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.methods.guards.interruption import Interrupted
from bmt_trainer.methods.guards.step_log import StepLog
from bmt_trainer.methods.guards.training import Guard
from bmt_trainer.methods.pipeline import (
    Loaded,
    Logs,
    Rows,
    current_mask,
    write_history,
    write_mask,
)
from bmt_trainer.methods.trl_mixins import SharpenMask, save_gates_only
from bmt_trainer.methods.trl_setup import prepare_trl
from bmt_trainer.methods.validation.callback import StoppedEarly
from bmt_trainer.methods.validation.step_masks import StepMasks
from bmt_trainer.models import slow_in_16_bits
from bmt_trainer.process import rank, world_size


def trl_arguments(config: TrainConfig, folder: Path, on_cpu: bool) -> dict[str, Any]:
    """The settings that every TRL trainer gets; folder: where its checkpoints go."""
    # Departure: the paper states AdamW alone; verl's weight decay is 0.01.
    # Of 16 bits on Apple's GPUs nothing is known here.
    fast = config.device != "mps" and not slow_in_16_bits("cpu" if on_cpu else "cuda")
    return {
        "output_dir": str(folder),
        **schedules.arguments(config),
        # Plain AdamW in fp32, written out because its eps decides which gates move.
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": config.precision == "bf16" or (config.precision == "auto" and fast),
        "use_cpu": on_cpu,
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps" if config.checkpoint_every else "no",
        "save_steps": config.checkpoint_every or config.steps,
        "save_total_limit": None,  # `guards.checkpoints` keeps two
        "logging_steps": 1,
        # `guards.training` ends a run whose loss is not finite; the filter would log 0 instead.
        "logging_nan_inf_filter": False,
        **trackers.arguments(config),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def fit_with_trl(
    trainer_class: type[Any],
    arguments: Any,
    loaded: Loaded,
    attached: Attached,
    rows: Rows,
    callbacks: Sequence[TrainerCallback],
    *,
    metric: str = "loss",
    **options: Any,
) -> Logs:
    """Train the attached gates, from the run's last checkpoint if there is one; the steps' logs.

    trainer_class: a TRL trainer with `MaskedTraining` among its bases; arguments, options: its
    settings; metric: the number of a step that is shown, and that only entries of steps log.
    """
    config, run = loaded.config, loaded.run
    prepare_trl()
    if attached.layers:
        save_gates_only(loaded.model, attached)
    checkpoint = run.last_checkpoint()
    guard = Guard(
        run.checkpoints,
        loaded.interruption,
        partial(_write_history, loaded, metric) if loaded.scored else None,
        loaded.display.say,
    )
    _use_one_device(arguments)
    if checkpoint is not None:
        loaded.display.say(f"resuming at step {run.steps_done()} of {config.steps}")
    with loaded.display.stage("train", config.steps, run.steps_done()) as advance:
        trainer = trainer_class(
            model=loaded.model,
            args=arguments,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=loaded.tokenizer,
            callbacks=[
                SharpenMask(attached.state, config.alpha_start, config.alpha_end),
                *callbacks,
                *_step_masks(loaded, attached),
                *trackers.callbacks(config, run),
                StepLog(run.folder, metric),
                StepProgress(advance, metric),
            ],
            attached=attached,
            reg_lambda=config.reg_lambda,
            guard=guard,
            figures=partial(trackers.validation_figures, run) if config.report_to else None,
            **options,
        )
        keep_gates_fp32(trainer)
        trainer.remove_callback(PrinterCallback)
        # With equal seeds all processes would sample the same completions.
        transformers.set_seed(config.seed + rank())
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except StoppedEarly:  # before its first step, with the checkpoint loaded
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except (Interrupted, TrainerError, torch.OutOfMemoryError) as error:
            _keep(trainer, error, loaded.display.say)
            raise
    logs = _steps(trainer.state.log_history, metric)
    if loaded.scored:
        _write_history(loaded, metric, logs)
    return logs


def _keep(trainer: Any, error: BaseException, say: Callable[[str], None]) -> None:
    """Write a checkpoint of the last whole step, for the error that ends the run.

    Of several processes an error may be in one alone, and writing takes all of them.
    """
    if world_size() > 1 and not isinstance(error, Interrupted | RolloutError):
        return
    try:
        step = trainer.keep()
    except Exception as other:  # such as of a device that is gone: the first error is the reason
        say(f"no checkpoint is written ({type(other).__name__}: {other})")
        return
    if step is None:
        return
    cause, more = f"ended by {type(error).__name__}", ""
    if isinstance(error, Interrupted):
        cause = "interrupted"
    elif isinstance(error, RolloutError):
        cause = "rollouts failed"
    elif isinstance(error, RewardError):
        cause = "a reward failed"
        more = "; go on with --resume, and with --accept-changes if you mend the reward"
    say(f"{cause}; a checkpoint of step {step} is written{more}")


def _step_masks(loaded: Loaded, attached: Attached) -> list[TrainerCallback]:
    """The callback of `masks_every`; none in a baseline, which has no mask."""
    every = loaded.config.masks_every
    if not every or not attached.layers:
        return []
    export = partial(current_mask, loaded, attached)
    return [StepMasks(loaded.run.folder, every, export, write_mask, loaded.display.say)]


def _steps(logs: Sequence[dict[str, Any]], metric: str) -> Logs:
    """The entries of steps: the last one of a run sums it up."""
    return [dict(entry) for entry in logs if metric in entry]


def final_loss(logs: Logs) -> float | None:
    """Mean loss of the last tenth of the steps, as one batch is too noisy; None without steps."""
    if not logs:
        return None
    losses = [entry["loss"] for entry in logs]
    tail = losses[-max(1, len(losses) // 10) :]
    return round(float(sum(tail) / len(tail)), 6)


def _write_history(loaded: Loaded, metric: str, logs: Sequence[dict[str, Any]]) -> None:
    loaded.run.rewrite()  # notes that a full disk has refused
    validation = loaded.run.notes.get("validation")
    history: dict[str, Any] = {"steps": _steps(logs, metric)}
    write_history(loaded, history if validation is None else {**history, "validation": validation})


def _use_one_device(arguments: Any) -> None:
    """Keep the trainer from `nn.DataParallel`: `MaskState` is shared within one process only."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
