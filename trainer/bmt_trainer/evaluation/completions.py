"""Completions of a model's prompts, from token ids or from a server's messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.encoding import Encoder, end_of_turn
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.thoughts import KNOWN, Completion, Thoughts


class CompletionReader:
    """Reads completions of a model, whose tokenizer and chat template say how it thinks.

    setting: as in `Thoughts.of_setting`. tokenizer: None if it is not here, as of a model that a
    server has: then only <think> and </think> are known, and no thought that a prompt has opened.
    Raises ConfigError.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, setting: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        source = _source(tokenizer)
        vocabulary = {} if tokenizer is None else tokenizer.get_added_vocab()
        used = [
            pair
            for pair in KNOWN
            if any(part in source for part in pair) or all(part in vocabulary for part in pair)
        ]
        self.thoughts = Thoughts.of_setting(setting, used)
        self._template_opens = self.thoughts.open_in(source)

    @property
    def has_tokenizer(self) -> bool:
        """True if token ids can be read."""
        return self._tokenizer is not None

    @cached_property
    def _encoder(self) -> Encoder:
        assert self._tokenizer is not None
        return Encoder(self._tokenizer)

    @cached_property
    def _end(self) -> int | None:
        return None if self._tokenizer is None else end_of_turn(self._tokenizer)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """A pattern of the special tokens, if delimiters of thoughts are among them."""
        if self._tokenizer is None:
            return None
        # Decoding leaves out each token that is marked as special, also those without a role, which
        # transformers 5 does not count among all_special_tokens.
        marked = {t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special}
        named = map(str, self._tokenizer.all_special_tokens)
        tokens = sorted(marked.union(named), key=len, reverse=True)
        delimiters = [part for pair in self.thoughts.pairs for part in pair]
        if not any(token in part for part in delimiters for token in tokens):
            return None
        return re.compile("|".join(map(re.escape, tokens)))

    def is_opened(self, example: Example) -> bool:
        """True if the example's prompt, as the model reads it, opens a thought."""
        if self._tokenizer is None or not self.thoughts.pairs:
            return False
        template = self._encoder.template
        if isinstance(example.prompt, str) or template is None:
            prompt = self._encoder.prompt_text(example)
            return self.thoughts.is_open(prompt, len(prompt))
        if not self._template_opens:
            return False
        prompt = self._encoder.prompt_text(example)
        bare = template.render(example.prompt, example, generation=False)
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, bare, strict=False))
        return self.thoughts.is_open(prompt, sum(1 for _ in alike))

    def of_ids(self, ids: Sequence[int], example: Example, *, cut: bool) -> Completion:
        """The completion of an example's prompt by token ids, up to the end of its turn.

        cut: the limit of tokens has ended it.
        """
        assert self._tokenizer is not None
        ids = list(ids)
        # Engines end answers where the checkpoint's settings say, which may not know the turn.
        if self._end is not None and self._end in ids:
            ids, cut = ids[: ids.index(self._end) + 1], False
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(
            text,
            whole=text if self._special is None else str(self._tokenizer.decode(ids)),
            thoughts=self.thoughts,
            special=self._special,
            opened=self.is_opened(example),
            cut=cut,
        )

    def of_message(
        self, text: str, reasoning: str | None, example: Example, *, cut: bool
    ) -> Completion:
        """The completion that a server gives as text, and perhaps its thoughts apart from it.

        reasoning: empty thoughts, which some servers always send, are none, unless the prompt
        opens a thought: then the server has found its end.
        """
        opened = self.is_opened(example)
        if reasoning or (opened and reasoning is not None):
            opening, closing = (self.thoughts.pairs or KNOWN[:1])[-1]
            # Without text, the thought is unfinished, or nothing follows it.
            text = f"{reasoning}{closing}{text}" if text.strip() else reasoning
            text = text if opened else f"{opening}{text}"
        return Completion(text, thoughts=self.thoughts, opened=opened, cut=cut)


def _source(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The source of all chat templates of a tokenizer; "" without one."""
    template = None if tokenizer is None else tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""
