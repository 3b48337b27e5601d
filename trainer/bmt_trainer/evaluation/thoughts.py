"""Thoughts in completions: their delimiters, and the answer that stands after them.

The rule, for text from any backend: what stands before the end of a thought is not graded, and a
thought that is opened and not closed has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from bmt_trainer.errors import ConfigError

#: The setting that grades completions with their thoughts.
OFF = "off"

#: Delimiters of model families: opening, closing. vLLM 0.32's reasoning parsers know the same
#: families (vllm/reasoning); the last three are common in prompts for training by rewards.
KNOWN = (
    ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Kimi K2, Nemotron, OLMo, MiniMax M2, Ernie
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),  # MiniMax M3
    ("<ifm|think>", "</ifm|think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis", "<|channel|>final"),  # gpt-oss
    ("<|content_thinking|>", "<|content_text|>"),  # Inkling
    ("to=self<|message|>", "to=user<|message|>"),  # Muse
    ("Here is my thought process:", "Here is my response:"),  # Granite
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
# Families whose turn may have several thoughts before the one closing delimiter.
_CHANNELS = frozenset({"<|channel|>analysis", "<|content_thinking|>", "to=self<|message|>"})
# A delimiter in one pair of brackets, with "/" or without.
_TAG = re.compile(r"([<\[])(/?)([\w:]+)([>\]])")


@dataclass(frozen=True)
class Thoughts:
    """Delimiters of thoughts; without pairs, a completion is graded as it is.

    pairs: (opening, closing). Tags such as <think> are read in any case and with spaces in their
    brackets, other delimiters as they are.
    """

    pairs: tuple[tuple[str, str], ...] = KNOWN[:1]

    @classmethod
    def of_setting(cls, setting: str | None, used: Iterable[tuple[str, str]] = ()) -> Thoughts:
        """The delimiters of a setting: `off`, `OPENING CLOSING`, or None for the model's own.

        used: pairs that the model uses, besides <think>. Raises ConfigError.
        """
        if setting is None:
            return cls(tuple(dict.fromkeys((*KNOWN[:1], *used))))
        if setting.strip() == OFF:
            return cls(())
        parts = setting.split()
        if len(parts) != 2 or parts[0] == parts[1]:
            raise ConfigError(
                f"thoughts: {setting!r} is neither {OFF} nor two different delimiters with a space "
                "between them, such as '<reasoning> </reasoning>'"
            )
        return cls(((parts[0], parts[1]),))

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """A pattern of all delimiters; a group is an opening one."""
        sides = [(pair[side], side) for pair in self.pairs for side in (0, 1)]
        # Longer ones first: one delimiter may begin with another.
        sides.sort(key=lambda delimiter: -len(delimiter[0]))
        patterns = [_pattern(text) if side else f"({_pattern(text)})" for text, side in sides]
        return re.compile("|".join(patterns) or r"(?!)")

    def is_open(self, prompt: str, header: int) -> bool:
        """True if a prompt leaves a thought open, so that its completion begins inside of one.

        header: the position from which the chat template writes the beginning of an answer; the
        prompt's length if it writes none: then the opening delimiter must be the last text.
        """
        marks = [mark for mark in self._marks.finditer(prompt) if mark.end() > header]
        if not marks and header == len(prompt):
            marks = [
                mark for mark in self._marks.finditer(prompt) if not prompt[mark.end() :].strip()
            ]
        return bool(marks) and _opens(marks[-1])

    def open_in(self, source: str) -> bool:
        """True if an opening delimiter is in the text."""
        return any(map(_opens, self._marks.finditer(source)))

    def opens(self, text: str) -> bool:
        """True if the text begins with a thought."""
        first = self._marks.match(text.lstrip())
        return first is not None and _opens(first)

    def after(self, text: str, *, opened: bool = False, first: bool = False) -> str | None:
        """The text after its thoughts, None if one is not closed.

        opened: the prompt has opened a thought; first: later thoughts are a part of the answer.
        """
        depth, begin = int(opened), 0
        for mark in self._marks.finditer(text):
            if not _opens(mark):
                depth = 0 if self._is_channel(text) else max(depth - 1, 0)
                if not depth:
                    begin = mark.end()
                    if first:
                        break
            elif not (opened and not text[: mark.start()].strip()):
                # An opening delimiter that repeats the prompt's opens no second thought.
                depth += 1
        return None if depth else text[begin:]

    def _is_channel(self, text: str) -> bool:
        return any(opening in _CHANNELS and opening in text for opening, _ in self.pairs)

    def graded(self, text: str, reference: str, *, opened: bool = False) -> tuple[str | None, str]:
        """A completion's answer, None for an unfinished thought, and the right one to compare with.

        A right answer that begins with a thought is what stands after it. In a right answer that
        has delimiters as its own text, they are text in completions too, after a first thought.
        """
        right = self.after(reference)
        if right is not None and right == reference:
            return self.after(text, opened=opened), reference
        if right is not None and right.strip() and (opened or self.opens(reference)):
            return self.after(text, opened=opened), right
        if opened or (self.opens(text) and not self.opens(reference)):
            return self.after(text, opened=opened, first=True), reference
        return text, reference


def _opens(mark: re.Match[str]) -> bool:
    """True for an opening delimiter."""
    return mark.lastindex is not None


def _pattern(delimiter: str) -> str:
    if tag := _TAG.fullmatch(delimiter):
        left, slash, name, right = map(re.escape, tag.groups())
        # One repetition after another of the same characters takes time by the square.
        slash = f"{slash}\\s*" if slash else ""
        # Hunyuan's later models add a suffix to the name: <think:NAME>.
        return rf"(?i:{left}\s*{slash}{name}(?::[^\s<>]+)?\s*{right})"
    return re.escape(delimiter)


class Completion(str):
    """A completion's text as rewards of users see it, with all that its grading needs.

    whole: the text in which thoughts are found, with the special tokens that may delimit them;
    special: a pattern of special tokens, which are no part of an answer; opened: the prompt has
    opened a thought; cut: the completion ended at its greatest length.
    """

    whole: str
    thoughts: Thoughts
    special: re.Pattern[str] | None
    opened: bool
    cut: bool

    def __new__(
        cls,
        text: str,
        *,
        whole: str | None = None,
        thoughts: Thoughts | None = None,
        special: re.Pattern[str] | None = None,
        opened: bool = False,
        cut: bool = False,
    ) -> Completion:
        made = super().__new__(cls, text)
        made.whole = text if whole is None else whole
        made.thoughts = Thoughts() if thoughts is None else thoughts
        made.special, made.opened, made.cut = special, opened, cut
        return made

    def graded(self, reference: str) -> tuple[str | None, str]:
        """The answer, None for an unfinished thought, and the right one to compare it with."""
        answer, right = self.thoughts.graded(self.whole, reference, opened=self.opened)
        if answer == self.whole:
            return str(self), right
        if answer is not None and self.special is not None:
            answer = self.special.sub("", answer)
        return answer, right

    @property
    def answer(self) -> str:
        """The text after the thoughts; "" for an unfinished thought."""
        return self.graded("")[0] or ""


def completion_of(text: str) -> Completion:
    """The text as a completion, by the delimiters <think> and </think> if it is not one yet."""
    return text if isinstance(text, Completion) else Completion(text)
