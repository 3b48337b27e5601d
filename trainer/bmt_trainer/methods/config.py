"""Settings that every method shares, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmt_trainer.settings import check, option


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run of any method. Raises ConfigError."""

    model: str = option("Folder of a safetensors checkpoint, or a model of the Hub.")
    dataset: str = option(
        "task:NAME, reasoning-gym:NAME, a benchmark's FORM:FILE (gsm8k, math, mmlu-pro, bbeh, "
        "tools), a .jsonl file or a Hub data set, each with ?key=value&…"
    )
    output: Path = option("The mask file to write (.bmt).")  # noqa: RUF009
    system: str | None = option("System message before each prompt that has none.", None)
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
    steps: int = option("Optimizer steps, T of Eq. 7.", 400, least=1)
    learning_rate: float = option("Constant AdamW learning rate of the gates.", 5e-4, above=0)
    max_grad_norm: float = option("Gradients are clipped to this norm.", 1.0, above=0)
    alpha_start: float = option("Sharpness at the first step (Eq. 7).", 1e2, above=0)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e3, above=0)
    reg_lambda: float = option("Weight λ of the regulariser -λ‖W̃‖².", 1e-5, least=0)
    eta: float = option("Share of the weights that start as deleted (Eq. 9).", 1 / 2048, above=0)
    init_mean: float = option("Mean of |G| at the start (Eq. 9).", 0.03, above=0)
    init_std: float = option("Standard deviation of G at the start (Eq. 9).", 0.01, least=0)
    init: Literal["paper", "no-tail"] = option(
        "no-tail: weights called important start above 0, where Eq. 9 deletes some by chance.",
        "paper",
    )
    calibration_prompts: int = option(
        "Training prompts for the Wanda scores, or all if there are fewer.", 2048, least=1
    )
    targets: str = option("Pattern of the module names to mask.", r"\.mlp\.gate_proj$")
    max_length: int = option("Longer examples are left out, in tokens.", 1024, least=1)
    max_new_tokens: int = option("Length of an answer in evaluation, in tokens.", 64, least=1)
    eval_batch_size: int = option("Prompts at once in evaluation and calibration.", 64, least=1)
    precision: Literal["auto", "bf16", "fp32"] = option(
        "Autocast of the forward pass; gates are fp32. auto: bf16 where the device computes it.",
        "auto",
    )
    lean: Literal["off", "auto", "on"] = option(
        "Write only deletions that training learnt; auto: where they answer as well.", "off"
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


def trl_arguments(config: RunConfig, folder: Path, on_cpu: bool) -> dict[str, Any]:
    """What every TRL configuration is given; folder: where its checkpoints go."""
    from bmt_trainer.models import slow_in_16_bits

    fast = not slow_in_16_bits("cpu" if on_cpu else "cuda")
    return {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        # The plain AdamW in fp32: eps decides which gates take part, so it is spelt out.
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
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def one_replica(arguments: Any) -> None:
    """Keep a trainer from `nn.DataParallel`: the masks' state is shared within a process only."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
