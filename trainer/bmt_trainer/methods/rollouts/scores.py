"""Scores of runs in an environment: rewards of greedy rollouts of several turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import RewardError
from bmt_trainer.evaluation.intervals import interval_of_mean
from bmt_trainer.evaluation.score import Score, is_right
from bmt_trainer.masking.masked_linear import MaskState, Mode
from bmt_trainer.methods.run_folder import HeldoutScores


class GreedyRewards(Protocol):
    """The reward of a greedy rollout of each row, by its place, and if its length has cut it.

    None: no reward applies.
    """

    def __call__(
        self, places: Sequence[int], batch_size: int, advance: Callable[[int], None]
    ) -> list[tuple[float | None, bool]]: ...


class RolloutScores(HeldoutScores):
    """Held-out scores by the loop of the run's trainer.

    Base and first mask are scored when there is a trainer, before its first step; calls before
    that are left out.
    """

    guessable = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rewards: GreedyRewards | None = None
        self._places: dict[int, int] = {}

    def start(
        self, rewards: GreedyRewards, table: Sequence[Mapping[str, Any]], state: MaskState
    ) -> None:
        """Score by `rewards` from now on, and note base and first mask, if they are not.

        table: the rows that `rewards` numbers, each with its `example`.
        """
        self._rewards = rewards
        self._places = {id(row["example"]): at for at, row in enumerate(table)}
        modes: dict[str, Mode] = {"base": "off", "init": "hard"}
        for name, mode in modes.items():
            if self._heldout and name not in self._run.notes:
                with state.use(mode):  # in the stage of training: no progress of its own
                    score = self.of(self._heldout)
                self._run.note(name, score.to_json())
                self._display.say(f"{name:<5}{score}")

    def __call__(self, name: str, examples: Sequence[Example] | None = None) -> None:
        if self._rewards is not None:
            super().__call__(name, examples)

    def of(
        self, examples: Sequence[Example], advance: Callable[[int], None] = lambda n: None
    ) -> Score:
        """The score of the mask in its current mode. Raises RewardError."""
        assert self._rewards is not None
        places = [self._places[id(example)] for example in examples]
        judged = self._rewards(places, self._batch_size, advance)
        given, cut = [value for value, _ in judged], sum(is_cut for _, is_cut in judged)
        values = [value for value in given if value is not None]
        if not values:
            raise RewardError(f"no reward applies to any of {len(examples)} rollouts")
        right = sum(map(is_right, given))
        mean = math.fsum(values) / len(values)
        interval = interval_of_mean(values)
        return Score(right, right, len(given), mean, interval, graded=False, cut=cut)
