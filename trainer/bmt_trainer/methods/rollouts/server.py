"""Rollouts on a running bmt-server: each step pushes its mask as flips, and requests completions.

A mask's version is named by its digest, so the step's own mask answers its requests, whatever else
the server does meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

from bmt_client import BmtClient, NotFound
from bmt_core import Mask, encode, symmetric_difference

from bmt_trainer.errors import RolloutError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING

# Concurrent requests; each is for all completions of one prompt.
_CONCURRENCY = 64
# More than a step has prompts, and more than a run has steps; vLLM's seeds end at 2^63.
_SEEDS_OF_A_STEP, _SEEDS_OF_A_TURN = 1 << 20, 1 << 48
# Versions kept on the server besides the newest, for rollouts that may still run.
_KEPT = 1


class ServerRollouts:
    """Completions of prompts by a server, in one turn or in several.

    mask: returns the hard mask of the gates' current values;
    sampling: top_p, top_k and min_p, if they are not neutral, and stop_token_ids: the tokens that
    end an answer, which the server's own settings may lack.
    """

    def __init__(
        self,
        client: BmtClient,
        name: str,
        mask: Callable[[], Mask],
        *,
        max_tokens: int,
        temperature: float,
        sampling: Mapping[str, Any] = NEUTRAL_SAMPLING,
    ) -> None:
        self._client, self._name = client, name
        self._mask, self._max_tokens = mask, max_tokens
        self._temperature, self._sampling = temperature, {**NEUTRAL_SAMPLING, **sampling}
        self._pushed: list[Mask] = []
        self._model, self._turns = "", 0
        self.push_seconds, self.push_bytes, self.flips = 0.0, 0, 0
        self._openai = client.openai()
        self._threads = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="rollout")

    def push(self) -> str:
        """Make the current mask the server's latest version; returns its model name."""
        mask = self._mask()
        start = time.perf_counter()
        if not self._pushed:
            sent = mask
            version = self._client.upload(mask, self._name)
        elif mask.digest == self._pushed[-1].digest:
            return f"{self._name}@{mask.digest[:12]}"
        else:
            sent = symmetric_difference(self._pushed[-1], mask)
            version = self._client.push(self._name, self._pushed[-1], mask)
        self.push_seconds = time.perf_counter() - start
        self.push_bytes, self.flips = len(encode(sent)), sent.zeros
        self._pushed.append(mask)
        while len(self._pushed) > _KEPT + 1:
            self._retire(self._pushed.pop(0))
        return version.model

    def _retire(self, mask: Mask) -> None:
        if any(mask.digest == kept.digest for kept in self._pushed):
            return  # training came back to this mask
        with contextlib.suppress(NotFound):  # another client has deleted it
            self._client.delete_version(self._name, mask.digest)

    def turn(
        self, prompts: Sequence[list[int]], trainer: Any, *, first: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One turn of rollouts: a completion of each prompt, and its tokens' log-probabilities.

        TRL repeats each prompt, in adjacent entries, once per completion; first: the turn begins
        the step's rollouts, and pushes its mask. Raises RolloutError.
        """
        if first:
            self._model, self._turns = self._pushed_for(trainer), 0
        model, turn = self._model, self._turns
        self._turns += 1
        groups = [(ids, len(list(same))) for ids, same in groupby(prompts)]
        # Derived from the step, so that a resumed run samples as an uninterrupted one would; later
        # turns, which have other numbers of prompts, draw from ranges of their own.
        step = trainer.state.global_step
        start = step * _SEEDS_OF_A_STEP + turn * _SEEDS_OF_A_TURN if turn else step * len(groups)
        seeds = range(start, start + len(groups))
        ids, counts = zip(*groups, strict=True)
        answers = self._threads.map(partial(self._complete, model), ids, counts, seeds)
        choices = [choice for group in answers for choice in group]
        return [tokens for tokens, _ in choices], [logprobs for _, logprobs in choices]

    def _pushed_for(self, trainer: Any) -> str:
        model = self.push()
        for metric in ("push_seconds", "push_bytes", "flips"):
            trainer._log_metric(metric, getattr(self, metric))
        return model

    def _complete(
        self, model: str, ids: list[int], count: int, seed: int
    ) -> list[tuple[list[int], list[float]]]:
        """Token ids and log-probabilities of each of `count` completions of one prompt."""
        answer = self._openai.completions.create(
            model=model,
            prompt=ids,
            n=count,
            logprobs=0,
            seed=seed,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            extra_body={"return_token_ids": True, **self._sampling},
        )
        if answer.model != model:
            raise RolloutError(
                f"the server answered as {answer.model}, not {model}; another client may have "
                "changed this run's name"
            )
        choices: list[Any] = sorted(answer.choices, key=lambda choice: choice.index)
        return [(list(c.token_ids), list(c.logprobs.token_logprobs)) for c in choices]

    def close(self) -> None:
        """Stop the threads and remove the mask's name from the server."""
        self._threads.shutdown(cancel_futures=True)
        if self._pushed:
            self._client.delete(self._name)
