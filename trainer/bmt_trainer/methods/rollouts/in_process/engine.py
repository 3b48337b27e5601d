"""Rollouts by vLLM in this process: each step pushes its mask as flips, and samples under it.

The engine is of the server's package, found by its entry point; the trainer imports nothing of it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from bmt_core import Mask

from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING

#: Entry point group of engines in this process. One is made of (folder, dtype=, tokens=,
#: sequences=, memory=), and has push, sample, context and close (server's rollout_engine.py).
ENGINES = "bmt.rollout_engines"

#: A completion's token ids and log-probabilities.
Completion = tuple[list[int], list[float]]

_INSTALL = "pip install 'bmt-adapters[cpu]' or [gpu], or leave --rollouts out"
# Sequences in flight at most: vLLM's batches beyond that gain little.
_SEQUENCES = 256


def check_installed() -> None:
    """Raise ConfigError without vLLM, or with one that masks cannot use.

    vLLM itself is imported when the engine starts.
    """
    if not entry_points(group=ENGINES, name="vllm"):
        raise ConfigError(
            "rollouts: this installation of bmt-adapters names no engine; install it again: "
            f"{_INSTALL}"
        )
    if find_spec("vllm") is None:
        raise ConfigError(f"rollouts: vllm is not installed; {_INSTALL}")


class EngineRollouts:
    """Completions of prompts by vLLM in this process, in one turn or in several.

    mask: returns the hard mask of the gates' current values; tokens: of the longest prompt with its
    completion, None for the model's context; sampling: fields of vLLM's sampling parameters; seed:
    of the run. Raises RolloutError if the engine does not start.
    """

    def __init__(
        self,
        folder: str,
        mask: Callable[[], Mask],
        *,
        dtype: str,
        tokens: int | None,
        rows: int,
        memory: float,
        max_tokens: int,
        sampling: Mapping[str, Any],
        seed: int,
    ) -> None:
        self._mask, self._max_tokens, self._seed = mask, max_tokens, seed
        self._sampling = {**NEUTRAL_SAMPLING, **sampling}
        self._turns = 0
        # vLLM logs to standard output by default, and the steps of its start as warnings.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            made = next(iter(entry_points(group=ENGINES, name="vllm"))).load()
            self._engine = made(
                folder,
                dtype=dtype,
                tokens=tokens,
                sequences=min(rows, _SEQUENCES),
                memory=memory,
            )
        except Exception as error:  # whatever vLLM raises
            raise RolloutError(
                f"vLLM does not start: {_words(error)}; with too little memory lower "
                f"--vllm-memory (now {memory:g}), --max-new-tokens or --max-length, raise it if "
                "the KV cache is too small, or leave --rollouts out"
            ) from error

    def turn(
        self, prompts: Sequence[list[int]], trainer: Any, *, first: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One turn of rollouts: a completion of each prompt, and its tokens' log-probabilities.

        TRL repeats each prompt, in adjacent entries, once per completion; first: the turn begins
        the step's rollouts, and pushes its mask. Raises RolloutError.
        """
        if first:
            self._turns = 0
        groups = [(ids, len(list(same))) for ids, same in groupby(prompts)]
        step = trainer.state.global_step
        # Of the step, so that a resumed run samples as an uninterrupted one would.
        drawn = random.Random(f"{self._seed}/{step}/{self._turns}").getrandbits(60)
        self._turns += 1
        room = [min(self._max_tokens, self._engine.context - len(ids)) for ids, _ in groups]
        asked = list[tuple[int, list[int], int, int, int]]()
        found: list[list[Completion]] = [[([], [])] * count for _, count in groups]
        seed = drawn
        for at, ((ids, count), most) in enumerate(zip(groups, room, strict=True)):
            # Results of calls may have taken up the context.
            if most > 0:
                asked.append((at, ids, count, seed, most))
            seed += count
        try:
            if first:
                self._push(trainer)
            if asked:
                places, *fields = zip(*asked, strict=True)
                for at, made in zip(
                    places, self._engine.sample(*fields, self._sampling), strict=True
                ):
                    found[at] = made
        except Exception as error:  # whatever vLLM raises
            raise RolloutError(
                f"vLLM failed at step {step}: {_words(error)}; go on with --resume, perhaps "
                "without --rollouts"
            ) from error
        rows = [one for made in found for one in made]
        return [ids for ids, _ in rows], [values for _, values in rows]

    def _push(self, trainer: Any) -> None:
        start = time.perf_counter()
        mask = self._mask()
        pushed = self._engine.push(mask)
        trainer._log_metric("push_seconds", time.perf_counter() - start)
        trainer._log_metric("push_bytes", pushed.size)
        trainer._log_metric("flips", pushed.flips)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def _words(error: BaseException) -> str:
    """An error in one line, with its kind."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
