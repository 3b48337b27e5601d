"""Settings that GRPO and SDFT share, which train on the model's own answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config.training import TrainConfig
from bmt_trainer.settings import option, redefined


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(TrainConfig):
    """Settings of the methods that train on the model's own answers. Raises ConfigError."""

    # Departure: the best mask by training examples; the paper's by the evaluation set.

    alpha_end: float = redefined(TrainConfig, "alpha_end", 1e4)
    max_new_tokens: int = option(
        "Length of an answer, in rollouts and in evaluation, in tokens.", 4096, least=1
    )
    prompts_per_step: int = option("Prompts of one optimizer step.", 64, least=1)
    micro_batch: int = option("Completions per forward pass of the loss.", 16, least=1)
    rollout_batch: int | None = option(
        "Completions sampled at once in each process, by transformers; default: all of a step, or "
        "as many as fit in memory by the run's estimate.",
        None,
        least=1,
    )
    temperature: float = option("Sampling temperature of the rollouts.", 1.0, above=0)
    reading: Literal["strict", "lenient"] = option(
        "The reading of the grader that chooses masks; both are reported.", "strict"
    )
    heldout_dataset: str | None = option("Hold out from this data set instead.", None, joined=True)
    validation: int = redefined(
        TrainConfig,
        "validation",
        100,
        "Training examples set aside to choose the best mask by; 0 for none.",
    )
    validate_every: int = redefined(
        TrainConfig, "validate_every", 25, "Steps between validations, greedy, hard mask."
    )

    added: ClassVar[tuple[str, ...]] = (
        # Validations are of the first build here.
        *(n for n in TrainConfig.added if n not in ("validation", "validate_every", "select")),
        *("rollouts", "rollout_batch"),
    )
    rollouts: Literal["transformers", "vllm"] = option(
        "Samples rollouts in this process: transformers, or vLLM under the step's mask.",
        "transformers",
    )
    vllm_memory: float = option(
        "Share of the device's memory for vLLM's rollouts: of a GPU all that it takes, of a CPU "
        "its KV cache.",
        0.3,
        above=0,
        most=0.9,
    )
    server: str | None = option(
        "URL of a bmt-server of the same base that samples rollouts, or several with commas, which "
        "share them; their key: BMT_API_KEY.",
        None,
        joined=True,
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None and not self.servers:
            raise ConfigError("server: no URL in it; name one, or leave it out")
        if twice := next((url for url in self.servers if self.servers.count(url) > 1), None):
            raise ConfigError(f"server: {twice} is named twice; name each server once")
        if self.rollouts == "vllm":
            self._check_vllm()
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

    def _check_vllm(self) -> None:
        if self.server is not None:
            raise ConfigError(
                f"rollouts: vllm samples in this process, and server {self.server} elsewhere; "
                "leave one of them out"
            )
        if self.rollout_batch is not None:
            raise ConfigError(
                f"rollout_batch: {self.rollout_batch} is of transformers' rollouts; vLLM takes as "
                "many at once as vllm_memory holds"
            )

    @property
    def servers(self) -> list[str]:
        """The URLs of `server`, in its order."""
        named = re.split(r",|\s\+\s", self.server or "")
        return [url for part in named if (url := part.strip().rstrip("/"))]

    @property
    def sampling(self) -> dict[str, Any]:
        """Restrictions of the tokens that are sampled; by default all may be."""
        return {}
