"""Rewards as TRL's trainers call them.

TRL 1.16, trainer/grpo_trainer.py, `_calculate_rewards`: by name, asynchronous functions together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.formulas import overruns
from bmt_trainer.evaluation.thoughts import Completion
from bmt_trainer.rewards.combined import ROW, Rewards, columns_of
from bmt_trainer.rewards.reward import Batch, Reward, Values, text_of
from bmt_trainer.rewards.watch import OVERRUN


def trl_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a trainer's data set: the positions of the rows, and prompts in their form alone.

    Columns stay in Python, and prompts too: Arrow, which holds a trainer's data set, refuses
    columns of mixed types, and adds to objects, such as a call's arguments, the keys that others
    have. `methods.rollouts.turns` puts the prompts back.
    """
    return [{"prompt": _form(row["prompt"]), ROW: at} for at, row in enumerate(rows)]


def _form(prompt: Any) -> Any:
    """A chat, or a text, without content: TRL looks which of them a prompt is."""
    return "" if isinstance(prompt, str) else [{"role": "user", "content": ""}]


def trl_functions(rewards: Rewards, rows: Sequence[Mapping[str, Any]]) -> list[Callable[..., Any]]:
    """TRL's `reward_funcs` for a data set of `trl_rows(rows)`; `rewards.weights` are the weights.

    rows: each with `prompt`, `answer`, the data's `columns`, and perhaps its `example`, by which a
    thought is known that the prompt opens. The functions raise RewardError.
    """
    names = columns_of([row["columns"] for row in rows])
    made: list[Callable[..., Any]] = []
    labels: dict[str, int] = {}
    for reward in rewards.rewards:
        labels[reward.label] = labels.get(reward.label, 0) + 1
        count = labels[reward.label]
        # Logs are by name, so two rewards may not share one.
        label = reward.label if count == 1 else f"{reward.label}-{count}"
        kind = _Awaited if reward.asynchronous else _Called
        made.append(kind(reward, label, rows, tuple(names), rewards))
    return made


class _Called:
    """A reward as a function of TRL's arguments."""

    def __init__(
        self,
        reward: Reward,
        label: str,
        rows: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        rewards: Rewards,
    ) -> None:
        self.__name__ = label
        self._reward, self._rows, self._names = reward, rows, names
        self._lenient, self._loop = rewards.reading == "lenient", rewards.loop
        self._reader = rewards.reader

    def __call__(self, **given: Any) -> Values:
        with overruns.counting() as overrun:
            values = self._reward.values(self.batch(**given), lenient=self._lenient)
        if overrun.number:
            given["log_metric"](OVERRUN, float(overrun.number))
        return values

    def batch(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any,
        **others: Any,
    ) -> Batch:
        """TRL's arguments with the columns of their rows."""
        rows = [self._rows[at] for at in others.pop(ROW)]
        return Batch(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            answers=[row["answer"] for row in rows],
            columns={n: [row["columns"].get(n) for row in rows] for n in self._names},
            options={"trainer_state": trainer_state, **others},
            place=f"at step {trainer_state.global_step + 1}",
            read=[
                self._read(row.get("example"), completion, ids)
                for row, completion, ids in zip(rows, completions, completion_ids, strict=True)
            ]
            if self._reward.of_answers
            else (),
        )

    def _read(self, example: Example | None, completion: Any, ids: Sequence[int]) -> Completion:
        """A completion with its thoughts known; of several turns, the last one."""
        reader, last = self._reader, {"content": completion}
        if not isinstance(completion, str):
            last = completion[-1] if completion else {}
        alone = isinstance(completion, str) or len(completion) == 1
        if example is not None and alone and set(last) <= {"role", "content"}:
            return reader.of_ids(ids, example, cut=False)
        asked = example or Example("", "")
        return reader.of_message(text_of(last), last.get("reasoning_content"), asked, cut=False)


class _Awaited(_Called):
    """The same of an asynchronous reward; its calls run in the rewards' own event loop."""

    async def __call__(self, **given: Any) -> Values:  # type: ignore[override]
        future = self._loop.submit(self._reward.awaited(self.batch(**given)))
        values: Values = await asyncio.wrap_future(future)
        return values
