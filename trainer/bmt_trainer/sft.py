"""Supervised fine-tuning of a mask (paper, sections 4 and 5.6), on TRL's `SFTTrainer`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bmt_trainer.config import check, option
from bmt_trainer.errors import ConfigError, DataError

# torch, transformers and TRL take seconds to import, and `--help` needs only the settings.
if TYPE_CHECKING:
    from bmt_core import Mask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bmt_trainer.attach import Attached
    from bmt_trainer.data import Example
    from bmt_trainer.progress import Display
    from bmt_trainer.run import Run


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Settings of `train`. The defaults are the paper's. Raises ConfigError."""

    model: str = option("Folder of a safetensors checkpoint, or a model of the Hub.")
    dataset: str = option(
        "task:NAME, reasoning-gym:NAME, a .jsonl file or a Hub data set, each with ?key=value&…"
    )
    output: Path = option("The mask file to write (.bmt).")  # noqa: RUF009
    system: str | None = option("System message before each prompt that has none.", None)
    heldout: int = option("Examples set aside for evaluation; 0 for none.", 400, least=0)
    train_examples: int | None = option(
        "Training examples at most; default: as many as the steps can use once.", None, least=1
    )
    steps: int = option("Optimizer steps, T of Eq. 7.", 400, least=1)
    batch_size: int = option("Examples per device and forward pass.", 4, least=1)
    gradient_accumulation: int = option("Forward passes per optimizer step.", 1, least=1)
    learning_rate: float = option("Constant AdamW learning rate of the gates.", 5e-4, above=0)
    max_grad_norm: float = option("Gradients are clipped to this norm.", 1.0, above=0)
    alpha_start: float = option("Sharpness at the first step (Eq. 7).", 1e2, above=0)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e3, above=0)
    reg_lambda: float = option("Weight λ of the regulariser -λ‖W̃‖².", 1e-5, least=0)
    eta: float = option("Share of the weights that start as deleted (Eq. 9).", 1 / 2048, above=0)
    init_mean: float = option("Mean of |G| at the start (Eq. 9).", 0.03, above=0)
    init_std: float = option("Standard deviation of G at the start (Eq. 9).", 0.01, least=0)
    calibration_prompts: int = option(
        "Training prompts for the Wanda scores, or all if there are fewer.", 2048, least=1
    )
    targets: str = option("Pattern of the module names to mask.", r"\.mlp\.gate_proj$")
    max_length: int = option("Longer examples are left out, in tokens.", 1024, least=1)
    max_new_tokens: int = option("Length of an answer in evaluation, in tokens.", 64, least=1)
    eval_batch_size: int = option("Prompts at once in evaluation and calibration.", 64, least=1)
    precision: Literal["bf16", "fp32"] = option(
        "Autocast of the forward pass; gates are fp32.", "bf16"
    )
    gradient_checkpointing: bool = option("Trade a third of the speed for memory.", False)
    device: Literal["auto", "cpu", "cuda"] = option(
        "Device to train on; auto takes a GPU if there is one.", "auto"
    )
    seed: int = option("Decides the split, the order, and the gates' start.", 0, least=0)
    checkpoint_every: int = option("Steps between checkpoints; 0 for none.", 100, least=0)
    resume: bool = option("Go on with the unfinished run of this output, if there is one.", False)

    def __post_init__(self) -> None:
        check(self)


def train(config: SftConfig, display: Display | None = None) -> Mask:
    """Train a mask, evaluate it, and write it to `config.output`.

    Its metadata holds the settings, the held-out scores of the base, of the mask that training
    started from, and of the trained one, and the versions of the libraries. The same settings on
    the same machine give the same mask, resumed or not. Raises TrainerError and
    bmt_core.BmtError.
    """
    from bmt_trainer.host import only_our_progress
    from bmt_trainer.progress import Display

    with only_our_progress():
        return _train(config, display or Display())


def _train(config: SftConfig, display: Display) -> Mask:
    import bmt_core

    from bmt_trainer import data, models
    from bmt_trainer.attach import attach
    from bmt_trainer.encode import training_rows
    from bmt_trainer.evaluate import best_guess
    from bmt_trainer.export import export, library_versions
    from bmt_trainer.run import Run, Scores, settings_of

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE is above 1; training runs in one process, so start one")
    settings = settings_of(config)
    folder = models.checkpoint_folder(config.model)
    base = models.base_of(config.model, folder)
    split = data.load(
        config.dataset,
        heldout=config.heldout,
        train=_train_examples(config),
        seed=config.seed,
        system=config.system,
    )
    run = Run(config.output, {**settings, "base": base.fingerprint}, resume=config.resume)
    tokenizer = models.load_tokenizer(folder)
    device = models.pick_device(config.device)
    model = models.load_model(folder, device)
    rows = training_rows(tokenizer, split.train, config.max_length)
    if not rows:
        raise DataError(
            f"{config.dataset} leaves no training example of at most {config.max_length} tokens; "
            "raise max_length or hold out fewer"
        )
    if len(rows) < len(split.train):
        display.say(f"left out {len(split.train) - len(rows)} examples that exceed max_length")
    display.say(
        f"{base.model_id} on {device}: {len(rows)} training and {len(split.heldout)} held-out "
        f"examples of {config.dataset}"
    )

    score = Scores(
        model,
        tokenizer,
        split.heldout,
        run,
        display,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
    )
    score("base")
    attached = attach(model, config.targets)
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        _calibrate(config, model, tokenizer, attached, split.train, display)
        with attached.state.use("hard"):
            score("init")
    run.note("init_density", run.notes.get("init_density", attached.density))
    loss = _fit(config, model, tokenizer, attached, rows, run, display)
    with attached.state.use("hard"):
        score("mask")

    scores: dict[str, Any] = {
        name: run.notes[name] for name in ("base", "init", "mask") if name in run.notes
    }
    if split.heldout:
        scores["guess"] = best_guess(split.train, split.heldout).to_json()
    libraries = ["torch", "transformers", "trl"]
    if config.dataset.startswith("reasoning-gym:"):
        libraries.append("reasoning-gym")
    mask = export(
        attached,
        base,
        geometry=bmt_core.geometry(folder, ""),
        metadata={
            "method": "sft",
            "dataset": config.dataset,
            "seed": config.seed,
            "steps": config.steps,
            "config": {k: v for k, v in settings.items() if k not in ("model", "device")},
            "train_examples": len(rows),
            "loss": round(loss, 6),
            "init_density": run.notes["init_density"],
            "scores": scores,
            "versions": library_versions(*libraries),
        },
    )
    bmt_core.save(mask, config.output)
    run.finish()
    return mask


def _train_examples(config: SftConfig) -> int:
    used = config.steps * config.batch_size * config.gradient_accumulation
    return config.train_examples or max(used, config.calibration_prompts)


def _calibrate(
    config: SftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    attached: Attached,
    examples: Sequence[Example],
    display: Display,
) -> None:
    """Wanda scores of the training prompts, and the gates' start (Eq. 9)."""
    from bmt_trainer.encode import batches, render
    from bmt_trainer.scoring import init_gates, input_norms

    prompts = [render(tokenizer, e.prompt) for e in examples[: config.calibration_prompts]]
    cut = [prompt[: config.max_length] for prompt in prompts]
    with display.stage("calibrate", len(cut)) as advance:

        def counted() -> Iterator[dict[str, Any]]:
            for batch in batches(cut, config.eval_batch_size, tokenizer.pad_token_id, model.device):
                yield batch
                advance(len(batch["input_ids"]))

        norms = input_norms(model, attached, counted())
    init_gates(
        attached,
        norms,
        eta=config.eta,
        mean=config.init_mean,
        std=config.init_std,
        seed=config.seed,
    )


def _fit(
    config: SftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    attached: Attached,
    rows: Sequence[Mapping[str, list[int]]],
    run: Run,
    display: Display,
) -> float:
    """Train the gates from where they are, or from the run's last checkpoint; the final loss."""
    import transformers
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    from bmt_trainer.anneal import Anneal
    from bmt_trainer.hooks import MaskedTraining, save_gates_only
    from bmt_trainer.progress import ShowSteps

    class Trainer(MaskedTraining, SFTTrainer):
        pass

    save_gates_only(model, attached)
    checkpoint = run.last_checkpoint()
    done = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    arguments = TrlConfig(
        output_dir=str(run.folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        # The plain AdamW in fp32: eps decides which gates take part, so it is spelt out.
        optim="adamw_torch",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.precision == "bf16",
        use_cpu=model.device.type == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=config.max_length,
        completion_only_loss=True,
        save_strategy="steps" if config.checkpoint_every else "no",
        save_steps=config.checkpoint_every or config.steps,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    # The state is shared within a process, so not with the replicas of nn.DataParallel, into which
    # the trainer puts the model when it sees several GPUs.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    with display.stage("train", config.steps, done) as advance:
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer,
            callbacks=[
                Anneal(attached.state, config.alpha_start, config.alpha_end),
                ShowSteps(advance),
            ],
        )
        trainer.attached, trainer.reg_lambda = attached, config.reg_lambda
        trainer.remove_callback(PrinterCallback)
        transformers.set_seed(config.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # The mean of the last tenth: one batch of four says little.
    tail = losses[-max(1, len(losses) // 10) :]
    return float(sum(tail) / len(tail))
