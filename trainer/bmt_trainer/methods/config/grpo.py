"""Settings of GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config.on_policy import OnPolicyConfig
from bmt_trainer.methods.config.training import REWARD_HELP, TrainConfig
from bmt_trainer.settings import option, redefined

#: The least alpha_start from which training the live gates alone gives the same mask; see
#: `masking.live_gates`.
LIVE_SET_MIN_ALPHA = 1e3


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(OnPolicyConfig):
    """Settings of `grpo.train`. Defaults are the paper's for GSM8K. Raises ConfigError.

    The paper does not state the clip range and the rollout temperature: 0.2 and 1 are the
    defaults of verl, which it used. Its Eq. 3 averages over a sequence's tokens and then over
    sequences; verl's default averages over all tokens, `loss: token-mean` here. Departure from
    verl: Eq. 3's average, and its ratio to the hard mask that sampled (docs/design/departures.md).
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
    clip: float = option(
        "Clip range ε of the ratio to the policy that sampled, under the hard mask (Eq. 3).",
        0.2,
        above=0,
    )
    loss: Literal["sequence-mean", "token-mean"] = option(
        "The average over tokens: of Eq. 3, or verl's default.", "sequence-mean"
    )
    reward: str = option(
        f"The value of an answer: {REWARD_HELP} with ?weight=…; see docs/training/rewards.md.",
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
    environment: str | None = option(
        "FILE.py:CLASS or a dotted path: what a model acts in over several turns, by calling its "
        "methods (TRL's environment_factory); see docs/training/rewards.md.",
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
        if processes > 1 and (self.environment or self.tools) and not self.servers:
            raise ConfigError(
                f"environment, tools: {processes} processes that sample together must take the "
                "same turns, and rollouts call as they like; sample on a server, or start one "
                "process"
            )
        return sampled // at_once

    @property
    def sampling(self) -> dict[str, Any]:
        """Restrictions of the tokens that are sampled, as requests to servers name them."""
        return {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}

    @property
    def live_alpha(self) -> float | None:
        """The sharpness at which the live set is chosen; None trains all gates."""
        exact = self.alpha_start >= LIVE_SET_MIN_ALPHA
        chosen = self.live_set == "on" or (self.live_set == "auto" and exact)
        return self.alpha_start if chosen else None
