"""Settings of the training methods: one frozen dataclass per method. Imports no torch.

TrainConfig
├── SftConfig
└── OnPolicyConfig
    ├── GrpoConfig
    └── SdftConfig
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.thoughts import Thoughts
from bmt_trainer.process import world_size
from bmt_trainer.settings import check, option, redefined

#: The least alpha_start from which training the live gates alone gives the same mask; see
#: `masking.live_gates`.
LIVE_SET_MIN_ALPHA = 1e3

#: The teacher's last turn in SDFT, which the paper takes over.
TEACHER_PROMPT = (
    "\n{prompt}\n\nThis is an example for a response to the question:\n{demonstration}\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)

_REWARD_HELP = (
    "words, number, gsm8k, math, letter, bbeh, tools, tool-calls, FILE.py:FUNCTION, a dotted path "
    "or judge:URL?model=NAME, each with ?key=value&…, several joined by ' + '"
)
_GRADER_HELP = (
    f"The measure of right answers in evaluation: {_REWARD_HELP}; default: by the data set's form, "
    "else words, or tool-calls if it has any."
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run of any method. Raises ConfigError."""

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
    steps: int = option("Optimizer steps, T of Eq. 7.", 400, least=1)
    learning_rate: float = option("Constant AdamW learning rate of the gates.", 5e-4, above=0)
    max_grad_norm: float = option("Gradients are clipped to this norm.", 1.0, above=0)
    alpha_start: float = option("Sharpness at the first step (Eq. 7).", 1e2, above=0)
    alpha_end: float = option("Sharpness after the last step (Eq. 7).", 1e3, above=0)
    reg_lambda: float = option("Weight λ of the regularizer -λ‖W̃‖².", 1e-5, least=0)
    eta: float = option(
        "Share of the weights that start as deleted (Eq. 9).", 1 / 2048, above=0, most=1
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
    device: Literal["auto", "cpu", "cuda"] = option(
        "Device to train on; auto takes a GPU if there is one.", "auto"
    )
    seed: int = option(
        "Seed of the held-out split, the order of the examples and the gates' first values.",
        0,
        least=0,
        most=2**32 - 1,
    )
    checkpoint_every: int = option("Steps between checkpoints; 0 for none.", 100, least=0)
    resume: bool = option("Resume the unfinished run of this output, if there is one.", False)
    overwrite: bool = option("Replace the mask and the history of an earlier run.", False)

    def __post_init__(self) -> None:
        check(self)
        Thoughts.of_setting(self.thoughts)
        if self.lean == "auto" and not self.heldout and self.heldout_share is None:
            raise ConfigError(
                "lean: auto chooses by scores, and nothing is held out (heldout 0); set heldout, "
                "or lean on or off"
            )


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
    grader: str | None = option(_GRADER_HELP, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing and self.group_by_length:
            raise ConfigError(
                "packing: it fills sequences with examples of any length, so it excludes "
                "group_by_length; set one of them"
            )


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(TrainConfig):
    """Settings of the methods that train on the model's own answers. Raises ConfigError."""

    alpha_end: float = redefined(TrainConfig, "alpha_end", 1e4)
    max_new_tokens: int = option(
        "Length of an answer, in rollouts and in evaluation, in tokens.", 4096, least=1
    )
    prompts_per_step: int = option("Prompts of one optimizer step.", 64, least=1)
    micro_batch: int = option("Completions per forward pass of the loss.", 16, least=1)
    temperature: float = option("Sampling temperature of the rollouts.", 1.0, above=0)
    reading: Literal["strict", "lenient"] = option(
        "The reading of the grader that chooses masks; both are reported.", "strict"
    )
    heldout_dataset: str | None = option("Hold out from this data set instead.", None, joined=True)
    validation: int = option(
        "Training examples set aside to choose the best mask by; 0 for none.", 100, least=0
    )
    validate_every: int = option("Steps between validations, greedy, hard mask.", 25, least=1)
    select: Literal["best", "last"] = option("The mask that is written.", "best")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heldout_dataset is not None and not self.heldout:
            raise ConfigError(
                f"heldout_dataset: {self.heldout_dataset} holds nothing out with heldout 0; set "
                "heldout, or leave it out"
            )
        if self.heldout_dataset is not None and self.heldout_share is not None:
            raise ConfigError(
                f"heldout_share: {self.heldout_share} is a share of dataset, and heldout_dataset "
                f"{self.heldout_dataset} takes its place; set heldout instead"
            )


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(OnPolicyConfig):
    """Settings of `grpo.train`. Defaults are the paper's for GSM8K. Raises ConfigError.

    The paper does not state the clip range and the rollout temperature: 0.2 and 1 are the
    defaults of verl, which it used. Its Eq. 3 averages over a sequence's tokens and then over
    sequences; verl's default averages over all tokens, `loss: token-mean` here.
    """

    steps: int = redefined(
        TrainConfig, "steps", 348, "Optimizer steps, T of Eq. 7; the paper's are 3 epochs of GSM8K."
    )
    learning_rate: float = redefined(TrainConfig, "learning_rate", 3e-4)
    alpha_start: float = redefined(TrainConfig, "alpha_start", 1e3)
    max_length: int = redefined(
        TrainConfig, "max_length", 512, "Longer prompts are left out, in tokens."
    )
    reading: Literal["strict", "lenient"] = redefined(
        OnPolicyConfig,
        "reading",
        "strict",
        "The reading of the reward that is trained on; both are reported.",
    )
    completions: int = option("Completions sampled of each prompt.", 4, least=2)
    beta: float = option("Weight β of the KL divergence to the base (Eq. 3).", 0.0, least=0)
    clip: float = option("Clip range ε of the ratio (Eq. 3).", 0.2, above=0)
    loss: Literal["sequence-mean", "token-mean"] = option(
        "The average over tokens: of Eq. 3, or verl's default.", "sequence-mean"
    )
    reward: str = option(
        f"The value of an answer: {_REWARD_HELP} with ?weight=…; see docs/rewards.md.",
        "words",
        joined=True,
    )
    overlong_penalty: int = option(
        "Last tokens of max_new_tokens in which a penalty grows to -1 (DAPO, Eq. 13); 0 for none.",
        0,
        least=0,
    )
    mask_truncated_completions: bool = option(
        "Leave answers that were cut off at max_new_tokens out of the loss.", False
    )
    top_p: float = option(
        "Sample from the most likely tokens of this total probability.", 1.0, above=0, most=1
    )
    top_k: int = option("Sample from this many most likely tokens; 0 for all.", 0, least=0)
    min_p: float = option(
        "Sample tokens of at least this share of the likeliest one's probability.",
        0.0,
        least=0,
        most=1,
    )
    server: str | None = option(
        "URL of a bmt-server of the same base that samples rollouts; its key: BMT_API_KEY.", None
    )
    server_wait: float = option(
        "Minutes to wait for a server that is away, as in a restart; then the run ends, with a "
        "checkpoint.",
        10.0,
        least=0,
    )
    server_token_seconds: float = option(
        "Seconds that a token of a rollout may take on the server, its queue included: a request "
        "beyond that, and a minute, has hung.",
        0.25,
        above=0,
    )
    environment: str | None = option(
        "FILE.py:CLASS or a dotted path: what a model acts in over several turns, by calling its "
        "methods (TRL's environment_factory); see docs/rewards.md.",
        None,
    )
    tools: str | None = option(
        "FILE.py:f,g or a dotted path: functions that a model may call in rollouts.", None
    )
    max_tool_calling_iterations: int | None = option(
        "Turns with calls of one rollout at most; default: until max_new_tokens.", None, least=1
    )
    live_set: Literal["auto", "on", "off"] = option(
        "Train only gates that can flip; auto: if that is exact, from alpha_start 1000 on.",
        "auto",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accumulation(1)
        for name, value, greedy in (("top_k", self.top_k, 1), ("min_p", self.min_p, 1.0)):
            if value == greedy:
                raise ConfigError(
                    f"{name}: {value} leaves one token to sample, so all {self.completions} "
                    "completions of a prompt are equal and the rewards teach nothing; 0 takes all"
                )
        if self.max_tool_calling_iterations and not (self.environment or self.tools):
            raise ConfigError(
                f"max_tool_calling_iterations: {self.max_tool_calling_iterations} bounds calls, "
                "and there is nothing to call; set environment or tools, or leave it out"
            )
        if self.overlong_penalty > self.max_new_tokens:
            raise ConfigError(
                f"overlong_penalty: {self.overlong_penalty} exceeds max_new_tokens "
                f"{self.max_new_tokens}"
            )
        if self.live_set == "on" and self.alpha_start < LIVE_SET_MIN_ALPHA:
            raise ConfigError(
                f"live_set: on needs alpha_start of at least {LIVE_SET_MIN_ALPHA:g}, not "
                f"{self.alpha_start:g}: below that every gate moves; use auto or off"
            )

    def accumulation(self, processes: int) -> int:
        """Forward passes per step in each of `processes` processes. Raises ConfigError."""
        sampled, at_once = self.prompts_per_step * self.completions, self.micro_batch * processes
        if sampled % at_once:
            among = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"micro_batch: {self.micro_batch}{among} does not divide the {sampled} completions "
                f"of a step (prompts_per_step {self.prompts_per_step} x completions "
                f"{self.completions})"
            )
        if processes > 1 and self.server is not None:
            raise ConfigError(f"server: rollouts on a server need one process, not {processes}")
        return sampled // at_once

    @property
    def live_alpha(self) -> float | None:
        """The sharpness at which the live set is chosen; None trains all gates."""
        exact = self.alpha_start >= LIVE_SET_MIN_ALPHA
        chosen = self.live_set == "on" or (self.live_set == "auto" and exact)
        return self.alpha_start if chosen else None


@dataclass(frozen=True, kw_only=True)
class SdftConfig(OnPolicyConfig):
    """Settings of `sdft.train`. The defaults are the paper's for ToolAlpaca. Raises ConfigError.

    The loss is a mean over a completion's tokens and then over completions, as in SDFT's code;
    Eq. 5 is a sum over tokens.
    """

    steps: int = redefined(
        TrainConfig,
        "steps",
        252,
        "Optimizer steps, T of Eq. 7; the paper's are 2 epochs of ToolAlpaca.",
    )
    learning_rate: float = redefined(
        TrainConfig,
        "learning_rate",
        5e-3,
        "Peak AdamW learning rate of the gates; a cosine decays it to 0.",
    )
    warmup: float = option("Share of the steps that the rate rises in.", 0.1, least=0, most=1)
    reg_lambda: float = redefined(
        TrainConfig,
        "reg_lambda",
        0.0,
        "Weight λ of the regularizer; the teacher anchors the mask already.",
    )
    max_length: int = redefined(
        TrainConfig,
        "max_length",
        1024,
        "Longer prompts, the teacher's with its demonstration, are left out, in tokens.",
    )
    max_new_tokens: int = redefined(OnPolicyConfig, "max_new_tokens", 1024)
    prompts_per_step: int = redefined(OnPolicyConfig, "prompts_per_step", 32)
    micro_batch: int = redefined(
        OnPolicyConfig, "micro_batch", 4, "Prompts per rollout batch and forward pass."
    )
    teacher_rate: float = option(
        "γ of Eq. 4: how far the teacher's gates follow in a step.", 0.01, above=0, most=1
    )
    skip_tokens: int = option("First tokens of a completion without a loss.", 3, least=0)
    teacher_prompt: str | None = option(
        "The teacher's last turn, with {prompt} and {demonstration}; default: SDFT's.", None
    )
    grader: str | None = option(_GRADER_HELP, None)
    validate_every: int = redefined(OnPolicyConfig, "validate_every", 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts_per_step % self.micro_batch:
            raise ConfigError(
                f"micro_batch: {self.micro_batch} does not divide prompts_per_step "
                f"{self.prompts_per_step}"
            )
        if world_size() > 1:
            raise ConfigError(f"sdft trains in one process, not {world_size()}")
        if self.skip_tokens >= self.max_new_tokens:
            raise ConfigError(
                f"skip_tokens: {self.skip_tokens} leaves no token with a loss of an answer of at "
                f"most max_new_tokens {self.max_new_tokens}; set fewer, or raise max_new_tokens"
            )
        fields = {field for _, field in self._parts()}
        if not {"prompt", "demonstration"} <= fields:
            raise ConfigError("teacher_prompt: {prompt} and {demonstration} must occur in it")

    def _parts(self) -> Iterator[tuple[str, str | None]]:
        """Text of the teacher's turn, and the field after it. Raises ConfigError for others."""
        try:
            for text, field, form, conversion in Formatter().parse(self.template):
                if field not in (None, "prompt", "demonstration") or form or conversion:
                    raise ValueError(f"{field}{'!' if conversion else ''}{conversion or ''}:{form}")
                yield text, field
        except ValueError as error:
            raise ConfigError(
                f"teacher_prompt: its fields are {{prompt}} and {{demonstration}} as they are, and "
                f"other braces are doubled ({error})"
            ) from None

    def template_of(self, demonstration: str) -> str:
        """The teacher's last turn with another name of the field of demonstrations."""
        names = {"prompt": "{prompt}", "demonstration": f"{{{demonstration}}}", None: ""}
        doubled = ((t.replace("{", "{{").replace("}", "}}"), field) for t, field in self._parts())
        return "".join(text + names[field] for text, field in doubled)

    @property
    def template(self) -> str:
        """The teacher's last turn."""
        return TEACHER_PROMPT if self.teacher_prompt is None else self.teacher_prompt
