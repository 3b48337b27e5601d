"""The rewards of a run: their weighted sum, for a trainer and for evaluation."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase, TrainerState

from bmt_trainer.data.encoding import end_of_turn, plain
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import ConfigError, RewardError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.formulas import overruns
from bmt_trainer.evaluation.graders import Marks, counted
from bmt_trainer.evaluation.thoughts import completion_of
from bmt_trainer.rewards.reward import Batch, Reward, Values
from bmt_trainer.rewards.signatures import REPLACED_COLUMNS
from bmt_trainer.rewards.specification import JOINED
from bmt_trainer.waiting import result_of

#: The column of a trainer's rows that holds their position.
ROW = "row"

# Examples that the rewards are tried on.
_TRIED = 8


class Loop:
    """An event loop in a thread of its own, for all calls of a run's asynchronous rewards.

    A client that a reward opens belongs to one loop; training and validation are in two threads.
    """

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
        return loop

    def submit(self, work: Coroutine[Any, Any, Values]) -> Any:
        """A future of `work`'s result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@dataclass(frozen=True)
class Rewards:
    """Rewards with weights; their sum, without those that are None, is a completion's value.

    name: their text; reading: of graders, the one that counts; tokenizer: of the model, for
    functions of batches; longest: tokens of a completion at most; overlong: makes the reward of
    overlong completions from `longest`, if there is to be one; thoughts: the setting of delimiters.
    """

    name: str
    rewards: tuple[Reward, ...]
    reading: Literal["strict", "lenient"] = "strict"
    tokenizer: PreTrainedTokenizerBase | None = None
    longest: int | None = None
    overlong: Callable[[int], Reward] | None = None
    thoughts: str | None = None
    loop: Loop = field(default_factory=Loop)

    @property
    def weights(self) -> list[float]:
        """The weight of each reward."""
        return [reward.weight for reward in self.rewards]

    @property
    def graded(self) -> bool:
        """True if the values are one grader's, 0 or 1, in the strict reading."""
        if not self.rewards:  # an environment rewards by itself
            return False
        [first, *others] = self.rewards
        simple = first.lenient is not None and first.weight == 1 and not others
        return simple and self.reading == "strict"

    @property
    def comparing(self) -> str:
        """Names of the graders among the rewards; they compare with an answer."""
        return ", ".join(reward.label for reward in self.rewards if reward.lenient is not None)

    @property
    def needs_tokenizer(self) -> bool:
        """True if a reward takes prompts, chats or token ids."""
        return not all(reward.form.single for reward in self.rewards)

    def for_model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int | None = None,
        reading: Literal["strict", "lenient"] = "strict",
        thoughts: str | None = None,
    ) -> Rewards:
        """The same rewards for completions of at most `max_new_tokens` tokens of a model.

        thoughts: the setting of their delimiters, as in `Thoughts.of_setting`. Raises ConfigError.
        """
        made = replace(
            self,
            tokenizer=tokenizer,
            longest=max_new_tokens,
            reading=reading,
            thoughts=thoughts,
        )
        if self.overlong is None or max_new_tokens is None:
            return made
        rewards = (*self.rewards, self.overlong(max_new_tokens))
        name = JOINED.join(reward.text for reward in rewards)
        return replace(made, rewards=rewards, name=name, overlong=None)

    def marks(self, completions: Sequence[str], examples: Sequence[Example]) -> Marks:
        """Value of one completion per example, in both readings. Raises RewardError."""
        if not examples:
            return Marks([], [], [], self.graded)
        batch = self.batch(completions, examples)
        strict = self._values(batch)
        # The lenient reading of a grader compares all that its strict one does.
        with overruns.counting() as overrun:
            lenient = [
                reward.values(batch, lenient=True) if reward.lenient else values
                for reward, values in zip(self.rewards, strict, strict=True)
            ]
        sums, forgiving = self._sums(strict), self._sums(lenient)
        chosen = forgiving if self.reading == "lenient" else sums
        counts = counted(completions, batch.answers)
        return Marks(sums, forgiving, chosen, self.graded, *counts, overrun.number)

    @cached_property
    def reader(self) -> CompletionReader:
        """A reader of the model's completions."""
        return CompletionReader(self.tokenizer, self.thoughts)

    def batch(
        self,
        completions: Sequence[str],
        examples: Sequence[Example],
        completion_ids: Sequence[Sequence[int]] | None = None,
        place: str = "in evaluation",
    ) -> Batch:
        """Completions of examples as the rewards take them.

        Token ids that are not given are those of the text, and the end of a completion that was
        not cut off.
        """
        chat = bool(self.tokenizer and self.tokenizer.chat_template)
        return Batch(
            # Without a tokenizer no reward takes prompts; chats have no text then.
            prompts=[_prompt(example, chat or self.tokenizer is None) for example in examples],
            completions=[_completion(str(text)) if chat else str(text) for text in completions],
            completion_ids=completion_ids or [self._ids(text) for text in completions],
            answers=[example.answer for example in examples],
            columns=columns_of([example.columns for example in examples]),
            # No step: what a mask is chosen by must not depend on when it was.
            options={
                "trainer_state": TrainerState(),
                "log_extra": _nothing,
                "log_metric": _nothing,
            },
            place=place,
            read=list(map(completion_of, completions)),
        )

    def _ids(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return []
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._end is not None and self.longest is not None and len(ids) < self.longest:
            ids.append(self._end)
        return ids

    @cached_property
    def _end(self) -> int | None:
        """The token that ends an answer: the chat template's end of a turn, else the eos."""
        if self.tokenizer is None:
            return None
        end = end_of_turn(self.tokenizer)
        return self.tokenizer.eos_token_id if end is None else end  # type: ignore[no-any-return]

    def _values(self, batch: Batch) -> list[Values]:
        """Values of each reward; asynchronous ones run together."""
        waiting = {
            at: self.loop.submit(reward.awaited(batch))
            for at, reward in enumerate(self.rewards)
            if reward.asynchronous
        }
        return [
            result_of(waiting[at]) if at in waiting else reward.values(batch)
            for at, reward in enumerate(self.rewards)
        ]

    def _sums(self, values: Sequence[Values]) -> list[float | None]:
        rows = zip(*values, strict=True)
        return [weighted_sum(row, self.weights) for row in rows]

    def tried(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The few of `examples` that the rewards are tried on."""
        return examples[:: max(1, len(examples) // _TRIED)][:_TRIED]

    def try_on(
        self,
        examples: Sequence[Example],
        say: Callable[[str], None],
        environments: Sequence[Any] | None = None,
    ) -> None:
        """Call each reward once, with a few of `examples` and their answers. Raises ConfigError.

        environments: of the examples of `tried`, if the run has any.
        """
        chosen = self.tried(examples)
        if not chosen:
            return
        texts = [example.answer or "placeholder" for example in chosen]
        batch = self.batch(texts, chosen, place="when tried before training")
        if environments is not None:
            batch = replace(batch, options={**batch.options, "environments": environments})
        # Columns that only some rows have are None in the others.
        batch = replace(batch, columns=_widened(batch.columns, examples, len(chosen)))
        try:
            values = self._values(batch)
        except RewardError as error:
            raise ConfigError(str(error)) from error
        for reward, given in zip(self.rewards, values, strict=True):
            if all(value is None for value in given):
                what = f"None, not applicable, for each of {len(chosen)} examples"
                if len(self.rewards) == 1:
                    raise ConfigError(
                        f"reward {reward.text}: returned {what} and their answers; expected a "
                        "number for some"
                    )
                say(f"warning: reward {reward.text}: {what} that it was tried on")


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Logs of rewards outside of a trainer go nowhere."""


def _prompt(example: Example, chat: bool) -> Any:
    return [dict(m) for m in example.messages] if chat else plain(example)


def _completion(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of rows, a list each; None where a row lacks one."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {n: [row.get(n) for row in rows] for n in names if n not in REPLACED_COLUMNS}


def _widened(
    columns: Mapping[str, Sequence[Any]], examples: Sequence[Example], count: int
) -> dict[str, Sequence[Any]]:
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {name: columns.get(name, [None] * count) for name in names}


def weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Sum of weighted rewards without those that are None; None if all are."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
    return math.fsum(v * w for v, w in pairs) if pairs else None
