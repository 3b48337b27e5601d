"""One reward: a function of either form, called with a batch, and its values checked."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmt_trainer.errors import RewardError
from bmt_trainer.evaluation.thoughts import Completion, completion_of
from bmt_trainer.rewards.loading import described, neighbors_of
from bmt_trainer.rewards.signatures import REPLACED_COLUMNS, Form

#: A reward for each completion of a batch; None: it does not apply to that one.
Values = list[float | None]

# Rewards become float32 in the trainer.
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 80


@dataclass(frozen=True)
class Batch:
    """Completions of prompts, one each, as TRL passes them to reward functions.

    completions: text, or chats of what the model said; answers: of the examples; columns: of the
    rows, a list each; options: trainer_state and whatever else TRL passes; place: of the batch in
    the run, for error messages; read: the completions with their thoughts known, for rewards that
    grade what stands after them.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    answers: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    place: str = "in evaluation"
    read: Sequence[Completion] = ()

    def graded(self, at: int) -> str:
        """A completion for a grader, which finds its answer in it."""
        return self.read[at] if self.read else completion_of(self.text(at))

    def answered(self) -> Batch:
        """The batch with the answers after thoughts as the completions' last texts."""
        texts = [completion_of(self.graded(at)).answer for at in range(len(self.completions))]
        completions = [
            text if isinstance(whole, str) else [*whole[:-1], {**whole[-1], "content": text}]
            for whole, text in zip(self.completions, texts, strict=True)
        ]
        return replace(self, completions=completions)

    def text(self, at: int) -> str:
        """The text of a completion; of a chat, the text of its last message."""
        completion = self.completions[at]
        if isinstance(completion, str):
            return completion
        return text_of(completion[-1]) if completion else ""

    def arguments(self) -> dict[str, Any]:
        """All of TRL's arguments and columns, by name."""
        # Copies: a function that changes what it is given changes neither the data nor what other
        # rewards see.
        columns = {k: deepcopy(v) for k, v in self.columns.items() if k not in REPLACED_COLUMNS}
        return {
            "answer": list(self.answers),
            **{name: list(values) for name, values in columns.items()},
            "prompts": deepcopy(list(self.prompts)),
            "completions": deepcopy(list(self.completions)),
            "completion_ids": [list(ids) for ids in self.completion_ids],
            **self.options,
        }


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return "" if content is None else str(content)


@dataclass(frozen=True)
class Reward:
    """A function that rewards completions.

    text: as it was given; label: its short name, in logs; weight: in the sum of rewards; lenient:
    the function of a grader's lenient reading; folder: where it imports its neighbors from;
    of_answers: it values what stands after thoughts, as graders and judges do, and not the whole
    completion, as functions in TRL do.
    """

    text: str
    label: str
    function: Callable[..., Any]
    form: Form
    weight: float = 1.0
    lenient: Callable[..., Any] | None = None
    folder: Path | None = None
    of_answers: bool = False

    @property
    def asynchronous(self) -> bool:
        """True if its calls return coroutines."""
        call: Any = self.function
        while isinstance(call, partial):
            call = call.func
        made = type(call).__call__  # an object's own `async def __call__`
        return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(made)

    @cached_property
    def bound(self) -> frozenset[str]:
        """Parameters that options set; columns of the same names are not passed."""
        call, names = self.function, set[str]()
        while isinstance(call, partial):
            names |= call.keywords.keys()
            call = call.func
        return frozenset(names)

    def values(self, batch: Batch, *, lenient: bool = False) -> Values:
        """The reward of each completion. Raises RewardError."""
        function = self.lenient if lenient and self.lenient else self.function
        text = batch.graded if self.of_answers else batch.text
        with self._importing():
            if not self.form.single:
                arguments = self._arguments(batch.answered() if self.of_answers else batch)
                with self._failures(batch):
                    result = function(**arguments)
                return self._checked(result, batch)
            given = []
            for at, answer in enumerate(batch.answers):
                with self._failures(batch, at):
                    given.append(function(text(at), answer))
        return self._numbers(given, batch)

    async def awaited(self, batch: Batch) -> Values:
        """The same of an asynchronous function; single completions are rewarded concurrently."""
        if not self.form.single:
            arguments = self._arguments(batch)
            with self._failures(batch):
                result = await self.function(**arguments)
            return self._checked(result, batch)

        async def one(at: int) -> Any:
            with self._failures(batch, at):
                return await self.function(batch.text(at), batch.answers[at])

        given = await asyncio.gather(*(one(at) for at in range(len(batch.answers))))
        return self._numbers(given, batch)

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        given = {k: v for k, v in batch.arguments().items() if k not in self.bound}
        if missing := self.form.missing(given):
            columns = [k for k in given if k in batch.columns or k == "answer"]
            raise RewardError(
                f"reward {self.text}: it takes {', '.join(missing)}, which TRL does not pass and "
                f"no column of the data has that name; columns: {', '.join(columns)}"
            )
        if self.form.anything:
            return given
        names = (*self.form.required, *self.form.optional)
        return {name: given[name] for name in names if name in given}

    def _importing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.folder is None else neighbors_of(self.folder)

    def _failures(self, batch: Batch, at: int | None = None) -> _Failures:
        return _Failures(self, batch, at)

    def fault(self, batch: Batch, what: str, at: int | None = None) -> RewardError:
        """The error that names the reward, the place and a completion (by default the first)."""
        which = "" if at is not None else "first "
        shown = f"; {which}completion: {_short(batch.text(at or 0))}" if batch.completions else ""
        return RewardError(f"reward {self.text}: {what}, {batch.place}{shown}")

    def _checked(self, result: Any, batch: Batch) -> Values:
        count = len(batch.completions)
        if isinstance(result, np.ndarray | torch.Tensor) and result.ndim == 1:
            result = result.tolist()
        if not isinstance(result, list):
            self._close(result)
            raise self.fault(
                batch, f"returned {_kind(result)}, expected a list of {count} numbers or None"
            )
        if len(result) != count:
            raise self.fault(batch, f"returned {len(result)} values for {count} completions")
        return self._numbers(result, batch)

    def _numbers(self, given: list[Any], batch: Batch) -> Values:
        try:
            return [self._number(value, batch, at) for at, value in enumerate(given)]
        except RewardError:
            self._close(given)
            raise

    def _number(self, value: Any, batch: Batch, at: int) -> float | None:
        if value is None and not self.form.single:
            return None
        if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
            with self._failures(batch, at):
                value = value.item()
        if not isinstance(value, numbers.Real):
            expected = "a number or None"
            if self.form.single:
                expected = "a number (only a function of `completions` may give None, for rows "
                expected += "that it does not apply to)"
            raise self.fault(batch, f"returned {_kind(value)}, expected {expected}", at)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= _LARGEST:  # true for NaN too
            raise self.fault(batch, f"returned {number}, expected a finite number", at)
        return number

    @staticmethod
    def _close(value: Any) -> None:
        """Close a coroutine that is not awaited, so that Python does not warn of it too."""
        for one in value if isinstance(value, list | tuple) else [value]:
            if asyncio.iscoroutine(one):
                one.close()


class _Failures:
    """Turns what a user's function raises into a RewardError that says where."""

    def __init__(self, reward: Reward, batch: Batch, at: int | None) -> None:
        self._reward, self._batch, self._at = reward, batch, at

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Ctrl-C ends the run; in the thread of asynchronous rewards no signal raises it.
        interrupted = isinstance(error, KeyboardInterrupt) and not self._reward.asynchronous
        if error is not None and not interrupted and not isinstance(error, RewardError):
            raised = f"it failed ({described(error)})"
            raise self._reward.fault(self._batch, raised, self._at) from error


def _kind(value: Any) -> str:
    """A value's type, and the value if it is short."""
    if value is None:
        return "None"
    if isinstance(value, Awaitable):
        return "a coroutine that is not awaited (declare the function `async def`)"
    hint = ""
    if callable(value):
        hint = " that is itself a function (give its maker's parameters as ?key=value)"
    return f"{type(value).__name__} {_short(value)}{hint}"


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())  # arrays are of several lines
    except Exception:  # a value's own __repr__
        return "that cannot be shown"
    return (
        text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]}… ({len(str(value)):,} characters)"
    )
