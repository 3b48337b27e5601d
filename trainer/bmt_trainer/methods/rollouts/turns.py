"""Rollouts of several turns with tools, in training and for scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import failing_together
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.masked_linear import Mode
from bmt_trainer.models import evaluating
from bmt_trainer.rewards.combined import ROW

# An answer of TRL's tool loop to a call that failed begins so.
_FAILED = "{'error': "


class Rollouts(Protocol):
    """Completions that not the trained model samples: servers', or vLLM's in this process."""

    def turn(
        self, prompts: Sequence[list[int]], trainer: Any, *, first: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """A completion of each prompt, and its tokens' log-probabilities.

        first: the turn begins a step's rollouts, under its mask. Raises RolloutError.
        """
        ...


class Turns:
    """Mixin before `HardRollouts` and TRL's `GRPOTrainer`: prompts as they are evaluated and
    served, turns on a server, and scores of rollouts.

    TRL 1.16, trainer/grpo_trainer.py: `_generate_and_score_completions`, `_tokenize_prompts`, and
    `_tool_call_loop`, which asks `_generate_single_turn` for each turn after the first with
    num_generations=1.
    table: the rows that the trainer's data set numbers, each with `prompt` and `example`;
    rollouts: the servers, or vLLM, that generate; None: the model; say: shows the first call that
    fails.
    """

    attached: Attached

    def __init__(
        self,
        *args: Any,
        table: Sequence[Mapping[str, Any]],
        rollouts: Rollouts | None = None,
        say: Callable[[str], None] = lambda text: None,
        **kwargs: Any,
    ) -> None:
        self.table, self.rollouts = table, rollouts
        self._say, self._said = say, False
        self._current: list[Example] = []
        self._judging: Mode | None = None
        self._rewards: Tensor | None = None
        self._cut: list[bool] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        rows = [self.table[row[ROW]] for row in inputs]
        self._current = [row["example"] for row in rows]
        given = [{**one, "prompt": row["prompt"]} for one, row in zip(inputs, rows, strict=True)]
        return super()._generate_and_score_completions(given)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Token ids as evaluation and servers have them: with the row's functions and options."""
        trainer: Any = self
        ids: list[list[int]] = []
        before: tuple[Example, Any] | None = None
        for example, prompt in zip(self._current, prompts, strict=True):
            if before is None or before[0] is not example or before[1] != prompt:
                before = example, prompt
                # An environment may have added to the last message.
                shown = example if isinstance(example.prompt, str) else _with(example, prompt)
                rendered = render(trainer._tokenizer, shown)
            ids.append(list(rendered))
        return ids, None, {}

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
        # A first turn fails in all processes; later ones are of some rollouts, of any process.
        with failing_together():
            result = super()._tool_call_loop(*args, **kwargs)  # type: ignore[misc]
        returned = [m for completion in result[1] for m in completion if m["role"] == "tool"]
        failed = [m for m in returned if str(m["content"]).startswith(_FAILED)]
        if failed and not self._said:
            self._said = True
            name, error = failed[0]["name"], failed[0]["content"]
            self._say(f"a call of {name} failed, and the model reads {error} (shown once)")
        return result

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        trainer: Any = self
        ends = set(trainer.eos_token_ids)
        self._cut = [not ids or ids[-1] not in ends for ids in completion_ids_list]
        rewards: Tensor = super()._calculate_rewards(  # type: ignore[misc]
            inputs, prompts, completions, completion_ids_list
        )
        self._rewards = rewards
        return rewards

    def judged(
        self, places: Sequence[int], batch_size: int, advance: Callable[[int], None]
    ) -> list[tuple[float | None, bool]]:
        """The weighted reward of one greedy rollout of each of some rows, in the mask's mode, and
        True for a rollout that its greatest length has cut.

        places: of the rows in `table`; None: no reward applies. Environments draw the same random
        numbers in each call, and training draws its own as if there were none.
        """
        trainer: Any = self
        judged: list[tuple[float | None, bool]] = []
        kept = trainer.num_generations_eval, trainer.beta
        trainer.num_generations_eval, trainer.beta = 1, 0.0
        self._judging = self.attached.state.mode
        try:
            with _same_randomness(trainer.args.seed), evaluating(trainer.model):
                for at in range(0, len(places), batch_size):
                    inputs = [{ROW: place} for place in places[at : at + batch_size]]
                    trainer._generate_and_score_completions(inputs)
                    judged += zip(self._weighted(len(inputs)), self._cut, strict=True)
                    advance(len(inputs))
        finally:
            (trainer.num_generations_eval, trainer.beta), self._judging = kept, None
            trainer._metrics["eval"].clear()
        return judged

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


def _with(example: Example, prompt: Any) -> Example:
    return replace(example, prompt=tuple(prompt)) if isinstance(prompt, list) else example


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
