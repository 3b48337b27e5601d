"""Training and evaluation examples: chat messages, the right answer, and a split of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bmt_trainer.errors import DataError

#: A chat message as in OpenAI's API: `role`, `content`, and perhaps `tool_calls` (with arguments as
#: objects), `tool_call_id`, `name`, `reasoning_content`.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """A row that is tokenized already: ids [S], and for each token if it is learnt [S]."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]


@dataclass(frozen=True)
class Answer:
    """An answer of text, and as a message if it is more than that (tool calls, reasoning)."""

    text: str
    reply: Message | None = None


@dataclass(frozen=True)
class Example:
    """A prompt with its answer.

    prompt: chat messages, or text that is taken as it is; answer: the complete text that the model
    must produce, "" if a row has none; demonstration: a worked response that only an SDFT teacher
    sees; None: the teacher sees the answer.
    reply: the answer as a message, if it is more than text (tool calls, reasoning); learnt: the
    indices of earlier assistant turns in `prompt` that supervised training learns too.
    tools, template_kwargs: arguments of the chat template; columns: all columns of the row, for
    rewards; location: of the row, for error messages.
    plain: how a model without a chat template reads messages: as lines; as one text, exactly as the
    row gave it; or not at all. tokens: the row instead of prompt and answer. A row of text alone
    has the prompt "" as text, and the text as its answer. rejected: of a preference pair, the other
    answer to the same prompt. wanted: the label of an answer that has one (KTO): if it is wanted.
    """

    prompt: tuple[Message, ...] | str
    answer: str
    demonstration: str | None = None
    reply: Message | None = None
    learnt: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    location: str = ""
    plain: Literal["lines", "exact", "no"] = "lines"
    tokens: Tokens | None = None
    rejected: Answer | None = None
    wanted: bool | None = None

    @property
    def key(self) -> str:
        """The prompt as JSON: equal for equal prompts. A row without a prompt is its own key."""
        if not self.has_prompt:
            return json.dumps(self.tokens.ids if self.tokens else self.answer)
        parts = (self.prompt, self.tools) if self.tools else self.prompt
        return json.dumps(parts, sort_keys=True)

    @property
    def where(self) -> str:
        """The location as the beginning of an error message; empty without one."""
        return f"{self.location}: " if self.location else ""

    @property
    def has_prompt(self) -> bool:
        """False for a row of text or of tokens: nothing asks, so no answer can be graded."""
        return self.tokens is None and self.prompt != ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as a chat: text is one user message."""
        return chat(self.prompt) if isinstance(self.prompt, str) else self.prompt


def with_system(example: Example, system: str) -> Example:
    """`example` with a system message, unless it has one or one of the developer.

    Raises DataError for raw text and for tokens, which have no turns.
    """
    if isinstance(example.prompt, str):
        raise DataError(
            f"{example.where}system: text and tokens have no turns; leave the setting out"
        )
    if example.prompt[0]["role"] in ("system", "developer"):
        return example
    first: Message = {"role": "system", "content": system}
    learnt = tuple(at + 1 for at in example.learnt)
    plain = example.plain if example.plain == "lines" else "no"
    return replace(example, prompt=(first, *example.prompt), learnt=learnt, plain=plain)


def with_template_kwargs(
    examples: Iterable[Example], kwargs: Mapping[str, Any] | None
) -> list[Example]:
    """The examples with arguments of the chat template; those of a row of its own stay."""
    if not kwargs:
        return list(examples)
    return [replace(e, template_kwargs={**kwargs, **e.template_kwargs}) for e in examples]


@dataclass(frozen=True)
class Counts:
    """Rows of a data set: how many were read, and where they went.

    rows: read; prompts: different ones among them; repeated: rows equal to an earlier row in
    prompt and answer; dropped: rows in neither part of the split, by reason; notes: further lines
    on how rows were read.
    """

    rows: int = 0
    prompts: int = 0
    repeated: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Training and held-out examples.

    No prompt is in both parts or twice among the held-out ones, but with another label. A prompt
    with several rows is several times in training.
    """

    train: list[Example]
    heldout: list[Example]
    counts: Counts = field(default_factory=Counts)

    def lines(self) -> list[str]:
        """The counts as lines of text, such as `data: 24 rows, 3 different prompts, …`."""
        counts = self.counts
        parts = [f"{counts.rows:,} rows", f"{counts.prompts:,} different prompts"]
        if counts.repeated:
            parts.append(f"{counts.repeated:,} repeated rows")
        parts.append(f"{len(self.train):,} for training")
        parts.append(f"{len(self.heldout):,} held out")
        dropped = [f"{n:,} left out: {why}" for why, n in counts.dropped.items() if n]
        return ["data: " + ", ".join([*parts, *dropped]), *counts.notes]


def chat(question: str) -> tuple[Message, ...]:
    """A chat of one user message."""
    return ({"role": "user", "content": question},)


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """`example` with the solved `shots` as earlier turns of its chat (few-shot prompting).

    Only the first system message is kept.
    """
    if not shots:
        return example
    before: list[Message] = []
    for shot in shots:
        turns = shot.messages if not before else [m for m in shot.messages if m["role"] != "system"]
        before += [*turns, shot.reply or {"role": "assistant", "content": shot.answer}]
    last = [m for m in example.messages if not before or m["role"] != "system"]
    return replace(example, prompt=(*before, *last), learnt=())
