"""Settings of every training run, and those of supervised training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.thoughts import Thoughts
from bmt_trainer.methods.config.trackers import names_of
from bmt_trainer.methods.guards import pushing
from bmt_trainer.settings import check, option

#: Help of settings that name rewards.
REWARD_HELP = (
    "words, number, gsm8k, math, letter, bbeh, tools, tool-calls, FILE.py:FUNCTION, a dotted path "
    "or judge:URL?model=NAME, each with ?key=value&…, several joined by ' + '"
)
#: Help of the setting that names a measure of evaluation.
GRADER_HELP = (
    f"The measure of right answers in evaluation: {REWARD_HELP}; default: by the data set's form, "
    "else words, or tool-calls if it has any."
)

#: Schedules of transformers (`SchedulerType`) that need nothing but the step. Those that watch a
#: loss are none: validation and patience do.
Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
#: Schedules without arguments of their own.
NO_ARGUMENTS = ("constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run of any method. Raises ConfigError."""

    # Departure: the base keeps its dtype, and checkpointing is off; the paper: fp32 and on.

    model: str = option("Folder of a safetensors checkpoint, or a model of the Hub.")
    dataset: str = option(
        "task:NAME, reasoning-gym:NAME, a benchmark's FORM:FILE (gsm8k, math, mmlu-pro, bbeh, "
        "tools), a file, a folder, a URL or a Hub data set, each with ?key=value&…; several are "
        "joined by ' + ', each perhaps with ?weight=.",
        joined=True,
    )
    output: Path = option("The mask file to write (.bmt).")  # noqa: RUF009
    system: str | None = option("System message before each prompt that has none.", None)
    chat_template: str | None = option(
        "Jinja file of the chat template, or the name of one of this package's; default: the "
        "checkpoint's own.",
        None,
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(
        'Arguments of the chat template as JSON, such as {"enable_thinking": false}.', None
    )
    heldout: int = option("Examples set aside for evaluation; 0 for none.", 400, least=0)
    heldout_share: float | None = option(
        "Instead: this share of a file's examples, rounded up; the paper's SFT: 0.25.",
        None,
        above=0,
        most=0.9,
    )
    train_examples: int | None = option(
        "Training examples at most; default: as many as the steps can use once.", None, least=1
    )
    steps: int = option("Optimizer steps, T of Eq. 7; 0 only with from_mask.", 400, least=0)
    epochs: float | None = option(
        "In place of steps: passes over the training examples, also parts of one.", None, above=0
    )
    from_mask: Path | None = option(  # noqa: RUF009
        "Train on from this mask (.bmt) of the same base: its zeros are the first ones.",
        None,
        flags=("--from", "--from-mask"),
    )
    hold_zeros: bool = option(
        "Hold the zeros of from_mask: new ones are stacked on them, and none is lost.", False
    )
    learning_rate: float = option(
        "AdamW learning rate of the gates; of a schedule the greatest.", 5e-4, above=0
    )
    lr_scheduler_type: Schedule = option(  # noqa: RUF009
        "Schedule of the learning rate over the steps, one of transformers' names.", "constant"
    )
    lr_scheduler_kwargs: Mapping[str, Any] | None = option(
        'Arguments of the schedule as JSON, such as {"min_lr_rate": 0.1}.', None
    )
    warmup: float = option(
        "Steps in which the rate rises from 0; below 1: their share of all steps.", 0.0, least=0
    )
    max_grad_norm: float = option("Gradients are clipped to this norm.", 1.0, above=0)
    alpha_start: float = option("Sharpness at the first step (Eq. 7).", 1e2, above=0)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e3, above=0)
    reg_lambda: float = option("Weight λ of the regularizer -λ‖W̃‖².", 1e-5, least=0)
    eta: float = option(
        "Share of the weights that start as deleted (Eq. 9); 0: none, but for the tail of init.",
        1 / 2048,
        least=0,
        most=1,
    )
    eta_among: Literal["all", "nonzero"] = option(
        "Weights that eta is a share of. nonzero: not those that are 0 in the checkpoint, which "
        "score lowest and whose deletion changes nothing.",
        "all",
    )
    init_mean: float = option("Mean of |G| at the start (Eq. 9).", 0.03, above=0)
    init_std: float = option("Standard deviation of G at the start (Eq. 9).", 0.01, least=0)
    init: Literal["paper", "no-tail"] = option(
        "no-tail: gates of important weights start above 0, where Eq. 9 deletes some by chance.",
        "paper",
    )
    calibration_prompts: int = option(
        "Training prompts for the Wanda scores, or all if there are fewer.", 2048, least=1
    )
    targets: str | None = option(
        r"Pattern of the module names to mask; default: \.mlp\.gate_proj$, in every layer.", None
    )
    max_length: int = option("Longer examples are left out, in tokens.", 1024, least=1)
    max_new_tokens: int = option("Length of an answer in evaluation, in tokens.", 64, least=1)
    validation: int = option(
        "Training examples set aside to watch the loss and to choose the best mask by; 0 for none.",
        0,
        least=0,
    )
    validation_dataset: str | None = option(
        "Validate on the first examples of this data set instead, as many as validation says.",
        None,
        joined=True,
    )
    validate_every: int = option("Steps between validations, hard mask.", 25, least=1)
    select: Literal["best", "last"] = option(
        "The mask that is written; without validations the last.", "best"
    )
    patience: int | None = option(
        "Validations in a row without a better one after which training ends; default: never.",
        None,
        least=1,
    )
    eval_batch_size: int = option("Prompts at once in evaluation and calibration.", 64, least=1)
    thoughts: str | None = option(
        "Delimiters of thoughts, which are not graded: OPENING CLOSING, or off to grade them too; "
        "default: <think> </think> and those of the chat template.",
        None,
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "Arithmetic; gates are always fp32. bf16: autocast of the forward pass. fp32: weights too, "
        "of any checkpoint, which take twice the memory of 16 bits. auto: bf16 if the device "
        "computes it.",
        "auto",
    )
    lean: Literal["off", "auto", "on"] = option(
        "Write only deletions that training learned; auto: if they score as well.", "off"
    )
    gradient_checkpointing: bool = option("Trade a third of the speed for memory.", False)
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "Device to train on; auto takes a GPU of CUDA or ROCm if there is one, and never mps, "
        "Apple's, on which no test of this project runs.",
        "auto",
    )
    seed: int = option(
        "Seed of the held-out split, the order of the examples and the gates' first values.",
        0,
        least=0,
        most=2**32 - 1,
    )
    masks_every: int = option(
        "Steps between masks that stay in the run's folder until it ends, as step-N.bmt; 0 for "
        "none.",
        0,
        least=0,
    )
    checkpoint_every: int = option("Steps between checkpoints; 0 for none.", 100, least=0)
    resume: bool = option("Resume the unfinished run of this output, if there is one.", False)
    accept_changes: bool = option(
        "Resume although reward, grader, environment or tools have changed, as after mending one; "
        "the mask's metadata says from which step.",
        False,
    )
    overwrite: bool = option("Replace the mask and the history of an earlier run.", False)
    report_to: str | None = option(
        "Trackers of the run's figures, with commas: trackio, wandb, tensorboard, mlflow.", None
    )
    run_name: str | None = option(
        "Name of the run in its trackers; default: the output's name.", None
    )
    push: str | None = option(
        "Push the mask to the Hugging Face Hub when it is written: hf://org/name[@revision].", None
    )

    #: Settings that earlier builds had not: a run's folder has them only if they are set.
    added: ClassVar[tuple[str, ...]] = (
        *("epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup", "patience"),
        *("validation", "validate_every", "select", "eta_among", "validation_dataset"),
    )

    def __post_init__(self) -> None:
        check(self)
        Thoughts.of_setting(self.thoughts)
        if self.push is not None:
            pushing.check_place(self.push)
        names_of(self.report_to)
        if self.accept_changes and not self.resume:
            raise ConfigError("accept_changes: it is for a run that goes on; add --resume")
        self._check_from()
        self._check_course()
        if self.lean == "auto" and not self.heldout and self.heldout_share is None:
            raise ConfigError(
                "lean: auto chooses by scores, and nothing is held out (heldout 0); set heldout, "
                "or lean on or off"
            )

    @property
    def other_start(self) -> str:
        """The settings of the start (Eq. 9) that are not the paper's, as text; empty without."""
        names = ("eta_among", "init", "init_mean", "init_std", "eta")
        defaults = {name: TrainConfig.__dataclass_fields__[name].default for name in names}
        other = [name for name in names if getattr(self, name) != defaults[name]]
        return ", ".join(
            f"{name} {_shown(getattr(self, name))} (the paper: {_shown(defaults[name])})"
            for name in other
        )

    def _check_course(self) -> None:
        """Raise ConfigError for settings of steps, rate and validation that exclude each other."""
        unset = type(self).__dataclass_fields__["steps"].default
        if self.epochs is not None and self.steps != unset:
            raise ConfigError(
                f"epochs: {self.epochs:g} takes the place of steps, and steps is {self.steps}; set "
                "one of them"
            )
        if self.warmup and self.lr_scheduler_type == "constant":
            raise ConfigError(
                f"warmup: {self.warmup:g}, and the schedule constant has none; set it to 0, or "
                "lr_scheduler_type to constant_with_warmup, linear or cosine"
            )
        if self.lr_scheduler_kwargs and self.lr_scheduler_type in NO_ARGUMENTS:
            raise ConfigError(
                f"lr_scheduler_kwargs: {self.lr_scheduler_type} takes none; leave it out, or set "
                "another lr_scheduler_type"
            )
        if self.validation_dataset is not None and not self.validation:
            raise ConfigError(
                f"validation_dataset: {self.validation_dataset} is not read with validation 0; set "
                "validation to its examples, or leave it out"
            )
        if self.patience is not None and not self.validation:
            raise ConfigError(
                f"patience: {self.patience} counts validations, and validation is 0; set it to the "
                "examples to validate on"
            )

    def _check_from(self) -> None:
        if self.from_mask is None:
            if self.steps < 1:
                raise ConfigError("steps: 0 is below 1, the least; 0 only with from_mask")
            if self.hold_zeros:
                raise ConfigError("hold_zeros: there are none to hold; name a mask by from_mask")
        elif self.lean != "off":
            raise ConfigError(
                f"lean: {self.lean} leaves out the deletions that a run starts from, and with "
                "from_mask those are the mask's; set lean to off"
            )


def _shown(value: object) -> str:
    if isinstance(value, float) and 0 < value < 0.01 and (1 / value).is_integer():
        return f"1/{1 / value:.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """Settings of `sft.train`. The defaults are the paper's. Raises ConfigError."""

    batch_size: int = option("Examples per device and forward pass.", 4, least=1)
    gradient_accumulation: int = option("Forward passes per optimizer step.", 1, least=1)
    group_by_length: bool = option(
        "Put examples of like length in one step: less padding, so faster steps.", False
    )
    learn: Literal["all", "last"] = option(
        "The turns of a chat that are learnt: every one of the assistant, or its last one.", "all"
    )
    packing: bool = option(
        "Put several examples into one sequence of max_length, without attention across them.",
        False,
    )
    overlong: Literal["drop", "truncate-left", "truncate-right", "error"] = option(
        "Examples above max_length: leave out, cut at the beginning, cut at the end, or fail.",
        "drop",
    )
    grader: str | None = option(GRADER_HELP, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing and self.group_by_length:
            raise ConfigError(
                "packing: it fills sequences with examples of any length, so it excludes "
                "group_by_length; set one of them"
            )
