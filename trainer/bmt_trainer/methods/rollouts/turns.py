"""Rollouts of several turns with tools, in training and for scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.masked_linear import Mode
from bmt_trainer.methods.rollouts.server import ServerRollouts
from bmt_trainer.models import evaluating

# An answer of TRL's tool loop to a call that failed begins so.
_FAILED = "{'error': "


class ToolRollouts:
    """Mixin before `HardRollouts` and TRL's `GRPOTrainer`: turns on a server, and scores.

    TRL 1.16, trainer/grpo_trainer.py: `_tool_call_loop` asks `_generate_single_turn` for each turn
    after the first with num_generations=1. rollouts: the server that generates; None: the model.
    """

    attached: Attached

    def __init__(self, *args: Any, rollouts: ServerRollouts | None = None, **kwargs: Any) -> None:
        self.rollouts = rollouts
        self.tool_error = ""
        self._judging: Mode | None = None
        self._rewards: Tensor | None = None
        super().__init__(*args, **kwargs)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        trainer: Any = self
        if self._judging is not None:
            return trainer.sampled(prompt_ids, self._judging, temperature=0.0), None
        if self.rollouts is not None:
            return self.rollouts.turn(prompt_ids, trainer, first=num_generations > 1)
        return super()._generate_single_turn(  # type: ignore[misc]
            prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
        )

    def _tool_call_loop(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._tool_call_loop(*args, **kwargs)  # type: ignore[misc]
        for message in (m for completion in result[1] for m in completion):
            if message["role"] == "tool" and str(message["content"]).startswith(_FAILED):
                self.tool_error = f"{message['name']}: {message['content']}"
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self._rewards = rewards
        return rewards

    def judged(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        mode: Mode,
        batch_size: int,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[float | None]:
        """The weighted reward of one greedy rollout of each of `rows`, in the mask's `mode`.

        rows: of the trainer's data set; None: no reward applies. Environments draw the same random
        numbers in each call, and training draws its own as if there were none.
        """
        trainer: Any = self
        values: list[float | None] = []
        kept = trainer.num_generations_eval, trainer.beta
        trainer.num_generations_eval, trainer.beta, self._judging = 1, 0.0, mode
        try:
            with _same_randomness(trainer.args.seed), evaluating(trainer.model):
                for at in range(0, len(rows), batch_size):
                    inputs = [dict(row) for row in rows[at : at + batch_size]]
                    trainer._generate_and_score_completions(inputs)
                    values += self._weighted(len(inputs))
                    advance(len(inputs))
        finally:
            (trainer.num_generations_eval, trainer.beta), self._judging = kept, None
            trainer._metrics["eval"].clear()
        return values

    def _weighted(self, count: int) -> list[float | None]:
        """Sums of the last `count` completions' rewards, without those that do not apply."""
        trainer: Any = self
        assert self._rewards is not None
        first = trainer.accelerator.process_index * count
        rewards = self._rewards[first : first + count].double().cpu()
        sums = (rewards * trainer.reward_weights.double()).nansum(dim=1)
        applies = ~torch.isnan(rewards).all(dim=1)
        return [
            value if some else None
            for value, some in zip(sums.tolist(), applies.tolist(), strict=True)
        ]


@contextmanager
def _same_randomness(seed: int) -> Iterator[None]:
    """Generators of Python, NumPy and torch seeded in the block, and as before after it."""
    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    transformers.set_seed(seed)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
