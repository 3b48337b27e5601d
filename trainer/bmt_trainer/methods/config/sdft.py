"""Settings of self-distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter
from typing import ClassVar

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config.on_policy import OnPolicyConfig
from bmt_trainer.methods.config.training import GRADER_HELP, Schedule, TrainConfig
from bmt_trainer.process import world_size
from bmt_trainer.settings import option, redefined

#: The teacher's last turn in SDFT, which the paper takes over.
#: Departure: the paper says that the demonstration is prepended.
TEACHER_PROMPT = (
    "\n{prompt}\n\nThis is an example for a response to the question:\n{demonstration}\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)


@dataclass(frozen=True, kw_only=True)
class SdftConfig(OnPolicyConfig):
    """Settings of `sdft.train`. The defaults are the paper's for ToolAlpaca. Raises ConfigError.

    The loss is a mean over a completion's tokens and then over completions, as in SDFT's code;
    Eq. 5 is a sum over tokens.
    """

    # Departure: a mean without the first tokens, where Eq. 5 sums.

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
    lr_scheduler_type: Schedule = redefined(  # noqa: RUF009
        TrainConfig, "lr_scheduler_type", "cosine"
    )
    warmup: float = redefined(TrainConfig, "warmup", 0.1)
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
    grader: str | None = option(GRADER_HELP, None)
    validate_every: int = redefined(OnPolicyConfig, "validate_every", 100)

    # Its warm-up is of the first build.
    added: ClassVar[tuple[str, ...]] = tuple(
        name for name in OnPolicyConfig.added if name != "warmup"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accumulation(world_size())
        if self.skip_tokens >= self.max_new_tokens:
            raise ConfigError(
                f"skip_tokens: {self.skip_tokens} leaves no token with a loss of an answer of at "
                f"most max_new_tokens {self.max_new_tokens}; set fewer, or raise max_new_tokens"
            )
        fields = {field for _, field in self._parts()}
        if not {"prompt", "demonstration"} <= fields:
            raise ConfigError("teacher_prompt: {prompt} and {demonstration} must occur in it")

    def accumulation(self, processes: int) -> int:
        """Forward passes per step in each of `processes` processes. Raises ConfigError."""
        if self.prompts_per_step % (self.micro_batch * processes):
            among = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"micro_batch: {self.micro_batch}{among} does not divide prompts_per_step "
                f"{self.prompts_per_step}"
            )
        return self.prompts_per_step // (self.micro_batch * processes)

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
