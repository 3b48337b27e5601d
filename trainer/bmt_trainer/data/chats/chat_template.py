"""A tokenizer's chat template, found out by rendering: its turns, and all that it leaves out."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError, UndefinedError
from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.chats import marks
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.errors import DataError


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant as a template writes it.

    before: the text that the turn follows; text: the turn with its end, without white space that
    the template puts after the end; ends: the template ends the turn by a token, so that the
    tokenizer's eos is not needed.
    """

    before: str
    text: str
    ends: bool


@dataclass(frozen=True)
class _Probe:
    """A chat of marks, rendered.

    missing: the first field that the template leaves out, if any; gaps: the text before each part
    of the learnt turn, thoughts and content, from the header of an answer on, or None if unknown.
    """

    missing: str | None
    gaps: Mapping[str, str | None]


class ChatTemplate:
    """The chat template of a tokenizer that has one.

    notes: counts of turns of which the template changed more than their learnt text, by a line
    for the display.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.notes: Counter[str] = Counter()
        self._probes: dict[str, _Probe] = {}

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        """A pattern of the tokens that stand for themselves in a text."""
        added = {str(token) for token in self._tokenizer.get_added_vocab()}
        added |= {str(token) for token in self._tokenizer.all_special_tokens}
        listed = sorted(filter(None, added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, listed)) or r"(?!)")

    def render(self, messages: Sequence[Message], example: Example, *, generation: bool) -> str:
        """The text of `messages` with the example's tools and arguments.

        generation: with the header of an answer after them. Raises DataError.
        """
        try:
            return self._text(messages, example, generation=generation)
        except _TEMPLATE_FAILS as error:
            raise DataError(
                f"{example.where}{self._refused(messages, example, generation)}the chat template "
                f"refuses the chat ({' '.join(str(error).split())}); "
                f"{self._fix(messages, example, generation, error)}"
            ) from None

    def turn(self, example: Example, messages: Sequence[Message], at: int) -> Turn:
        """The assistant's turn `messages[at]`, checked: all that the turn says is in its text.

        Raises DataError.
        """
        message = messages[at]
        before = self.render(messages[:at], example, generation=True)
        full = self.render(messages[: at + 1], example, generation=False)
        begin = self._begin(example, messages, at, before, full)
        body = full[begin:]
        for earlier in messages[:at]:
            if earlier.get("reasoning_content", "").strip() not in full:
                self.notes["the chat template leaves out thoughts of turns before an answer"] += 1
        probe = self._check(example, messages, at)
        after = self._check_turn(example, message, at, body, probe)
        # An unasked header follows the answer, and is none of it.
        end = after + (0 if self._unasked_header else len(body[after:].rstrip()))
        ends = False
        if self.end and (found := body.rfind(self.end, after)) >= 0:
            end = found + len(self.end)
        last = [match.end() for match in self._tokens.finditer(body, after, end)]
        if self.end and last:  # a token that closes a call ends no turn
            ends = last[-1] == end
        return Turn(full[:begin], body[:end], ends)

    def check_prompt(self, example: Example) -> None:
        """Raise DataError if the template leaves out a part of the example's prompt."""
        self._check(example, example.messages, None)

    def _begin(
        self, example: Example, messages: Sequence[Message], at: int, before: str, full: str
    ) -> int:
        """The position in `full` at which the turn's text begins."""
        if full.startswith(before):
            return len(before)
        begin = self._alike(before, full)
        # Only the header of an answer may differ, such as an opening of thoughts.
        header = len(before) - self._alike(
            before, self.render(messages[:at], example, generation=False)
        )
        if len(before) - begin > header:
            raise DataError(
                f"{example.where}turn {at + 1} (assistant): the chat template writes the turns "
                "before it in another way once it follows, so its text has no beginning"
            )
        left = before[begin:]
        self.notes[f"the chat template opens answers with {left!r}, and learnt turns lack it"] += 1
        return begin

    def _alike(self, one: str, other: str) -> int:
        """Length of the common beginning of two texts, not inside of a token of either."""
        size = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        )
        for text in (one, other):
            for match in self._tokens.finditer(text):
                if match.start() < size < match.end():
                    size = match.start()
        return size

    def _check_turn(
        self, example: Example, message: Message, at: int, body: str, probe: _Probe
    ) -> int:
        """The position in `body` after the turn's thoughts and content. Raises DataError."""
        place = f"{example.where}turn {at + 1} (assistant), "
        after = 0
        for field, gap in probe.gaps.items():
            text = message[field]
            for end in filter(None, (self.end, self._tokenizer.eos_token)):
                if end in text:
                    raise DataError(
                        f"{place}{field}: contains {end!r}, the end of a turn; remove it"
                    )
            # As it is, or without white space at its ends.
            for part in (text, text.strip(), text.rstrip(), text.lstrip()):
                begin = body.find(part, after) if gap is None else after + len(gap)
                if begin >= 0 and body.startswith((gap or "") + part, begin - len(gap or "")):
                    break
            else:
                raise DataError(f"{place}{field}: the chat template changes its text; {_OTHER}")
            if part != text:
                self.notes["the chat template trims white space of turns"] += 1
            after = begin + len(part)
        for number, call in enumerate(message.get("tool_calls", ())):
            for value in (call["function"]["name"], *marks.leaves(call["function"]["arguments"])):
                if not any(form in body[after:] for form in marks.written(value)):
                    raise DataError(
                        f"{place}tool_calls[{number}].function: the chat template changes "
                        f"{value!r}; {_OTHER}"
                    )
        return after

    def _check(self, example: Example, messages: Sequence[Message], learnt: int | None) -> _Probe:
        """Raise DataError if the template leaves out a part of the chat up to the turn `learnt`.

        learnt: None for a chat that is a prompt. Texts are replaced by marks, which cannot be
        found by accident. Chats of one shape are checked once.
        """
        chat = list(messages if learnt is None else messages[: learnt + 1])
        shape = json.dumps(
            [marks.shape(chat), marks.shape(example.tools), example.template_kwargs, learnt]
        )
        if shape not in self._probes:
            self._probes[shape] = self._probe(example, chat, learnt)
        if (missing := self._probes[shape].missing) is not None:
            raise DataError(f"{example.where}{missing}: the chat template leaves it out; {_OTHER}")
        return self._probes[shape]

    def _probe(self, example: Example, chat: list[Message], learnt: int | None) -> _Probe:
        """A rendering of the chat with marks in place of its texts."""
        mark = marks.Marks()
        probe: list[dict[str, Any]] = []
        own: dict[str, str] = {}
        for at, message in enumerate(chat):
            place, made = f"turn {at + 1} ({message['role']})", dict(message)
            for field in ("reasoning_content", "content"):
                # Templates may leave out thoughts of turns before an answer.
                wanted = field == "content" or at == learnt
                if wanted and message.get(field, "").strip():
                    made[field] = mark(f"{place}, {field}")
                    if at == learnt:
                        own[field] = made[field]
            made |= marks.marked_calls(message, place, mark)
            probe.append(made)
        tools = [
            marks.marked_tool(tool, f"tools[{n}]", mark) for n, tool in enumerate(example.tools)
        ]
        try:
            text = self._text(probe, example, generation=learnt is None, tools=tools)
            before = self._text(probe[:learnt], example, generation=True, tools=tools)
        except _TEMPLATE_FAILS:
            self.render(chat, example, generation=learnt is None)
            # A template that reads texts takes no marks: the turn's own are looked for.
            return _Probe(None, dict.fromkeys(own))
        missing = mark.missing(text)
        gaps: dict[str, str | None] = {}
        at = self._alike(before, text)
        for field, name in own.items():
            found = text.find(name, at)
            gaps[field] = text[at:found]
            at = found + len(name)
        return _Probe(missing, gaps)

    def _refused(self, messages: Sequence[Message], example: Example, generation: bool) -> str:
        """The first turn with which the template refuses a chat."""
        for size in range(1, len(messages) + 1):
            try:
                self._text(messages[:size], example, generation=generation)
            except _TEMPLATE_FAILS:
                return f"turn {size} ({messages[size - 1]['role']}): "
        return ""

    def _fix(
        self, messages: Sequence[Message], example: Example, generation: bool, error: Exception
    ) -> str:
        """The fix of a chat that the template refuses: does leaving out system messages help?"""
        other = "choose another --chat-template"
        rest = [m for m in messages if m["role"] not in ("system", "developer")]
        if len(rest) == len(messages):
            raised = isinstance(error, TemplateError) and not isinstance(error, UndefinedError)
            return f"bring the roles into the template's order, or {other}" if raised else other
        try:
            self._text(rest, example, generation=generation)
        except _TEMPLATE_FAILS:
            return other
        return (
            "it takes no system message: move its text into the user's first turn (and leave out "
            f"--system), or {other}"
        )

    @cached_property
    def _parts(self) -> bool:
        """True if the template takes content as a list of parts alone."""
        ask: Message = {"role": "user", "content": f"{marks.MARK}a"}
        listed: Message = {"role": "user", "content": [{"type": "text", "text": f"{marks.MARK}a"}]}
        for message in (ask, listed):
            try:
                text = self._tokenizer.apply_chat_template([dict(message)], tokenize=False)
            except _TEMPLATE_FAILS:
                continue
            # Not the list itself, written as it is.
            if f"{marks.MARK}a" in str(text) and "'type'" not in str(text):
                return message is listed
        return False

    @cached_property
    def end(self) -> str | None:
        """The text that ends a turn of the assistant, or None if the template has none."""
        ask: list[Message] = [{"role": "user", "content": f"{marks.MARK}a"}]
        ask.append({"role": "assistant", "content": f"{marks.MARK}b"})
        bare = Example("", "")
        try:
            last = self._text(ask, bare, generation=False).rpartition(f"{marks.MARK}b")[2]
            more: list[Message] = [*ask, {"role": "user", "content": f"{marks.MARK}c"}]
            within = self._text(more, bare, generation=False).rpartition(f"{marks.MARK}b")[2]
        except _TEMPLATE_FAILS:
            return None
        # A template may end the whole text as well, which is no end of a turn.
        common = last[: self._alike(last, within)].rstrip()
        if self._unasked_header:
            first = self._tokens.search(common)
            return common[: first.end()] if first else None
        return common or last.rstrip() or None

    @cached_property
    def _unasked_header(self) -> bool:
        """True if the template ends each chat with the header of an answer, also after an answer.

        So do templates without `add_generation_prompt`, such as the first one of Llama 3.
        """
        ask: Message = {"role": "user", "content": f"{marks.MARK}a"}
        answer: Message = {"role": "assistant", "content": f"{marks.MARK}b"}
        bare = Example("", "")
        try:
            opened = self._text([ask], bare, generation=False)
            whole = self._text([ask, answer], bare, generation=False)
            more = self._text([ask, answer, ask], bare, generation=False)
        except _TEMPLATE_FAILS:
            return False
        between, _, last = whole[len(opened) :].partition(f"{marks.MARK}b")
        follows = more.rpartition(f"{marks.MARK}b")[2]
        opens = opened.rpartition(f"{marks.MARK}a")[2]
        header = opens[len(opens) - self._alike(opens[::-1], last[::-1]) :]
        return (
            whole.startswith(opened)
            and not between.strip()
            and bool(header.strip())
            and not follows.startswith(last.rstrip())
        )

    def _text(
        self,
        messages: Sequence[Message],
        example: Example,
        *,
        generation: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        tools = example.tools if tools is None else tools
        listed = copy.deepcopy([dict(tool) for tool in tools]) or None
        source = str(self._tokenizer.get_chat_template(None, listed))
        return str(
            self._tokenizer.apply_chat_template(
                [_for_template(message, source, parts=self._parts) for message in messages],
                tools=listed,
                add_generation_prompt=generation,
                tokenize=False,
                **example.template_kwargs,
            )
        )


# Whatever Jinja and the expressions in a template raise.
_TEMPLATE_FAILS = Exception
_OTHER = (
    "choose another template with --chat-template (`tools`, which the package ships, writes "
    "functions), or remove the field"
)


def _for_template(message: Message, source: str, *, parts: bool) -> dict[str, Any]:
    """A message with the names that the template's source has: older ones, or no developer.

    parts: content is a list of parts.
    """
    made = copy.deepcopy(dict(message))
    if parts:
        made["content"] = [{"type": "text", "text": made["content"]}]
    if made["role"] == "developer" and "developer" not in source:
        made["role"] = "system"
    if "reasoning_content" in made and "reasoning_content" not in source:
        made |= dict.fromkeys(("thinking", "reasoning"), made["reasoning_content"])
    return made
