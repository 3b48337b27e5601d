"""Greedy answers of a running server's models, by its API of OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from bmt_trainer.console import Display
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.data.fitting import answer_room
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING, Generate
from bmt_trainer.evaluation.thoughts import Completion
from bmt_trainer.waiting import result_of, threads

if TYPE_CHECKING:
    from bmt_client import BmtClient

# The tokens show thoughts whose delimiters are special tokens, and those that a parser took away.
_SENT: Mapping[str, Any] = {**NEUTRAL_SAMPLING, "return_token_ids": True}
# Answers of servers that do not have these paths at all.
_NOT_STATED = (404, 405, 501)


@dataclass(frozen=True)
class LocalBase:
    """The base as it is on this machine: what a server must serve, and how prompts are rendered.

    context: the most tokens of a sequence, None if it is not known.
    """

    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    context: int | None


def by_server(
    url: str,
    names: Mapping[str, str],
    *,
    concurrency: int,
    reader: CompletionReader | None = None,
    base: LocalBase | None = None,
    checked: bool = False,
    named: bool = False,
) -> dict[str, Generate]:
    """Models of a running server, `concurrency` requests at a time, which vLLM batches.

    names: `base` or `mask` -> the server's name of a model; the API key is BMT_API_KEY.
    reader: finds thoughts, by the base's tokenizer if it is here.
    base: its prompts are sent as token ids; without it the server renders chats by its template.
    checked: compare base and names with what the server states, before anything is generated.
    named: the base's name is the user's; else another of the base's names may take its place.
    Raises ConfigError for a URL that cannot be used, and RolloutError if the server serves others;
    the functions raise RolloutError if a request fails, and DataError for a prompt beyond the
    context.
    """
    read = reader or CompletionReader(None)
    context = None if base is None else base.context
    if checked:
        names, served = _checked(url, names, base, named)
        context = min((n for n in (context, served) if n is not None), default=None)

    def answers(name: str, examples: Sequence[Example], tokens: int) -> list[Completion]:
        from bmt_client import BmtClient

        prompts: list[list[int] | None] = [None] * len(examples)
        if base is not None:
            rendered = [render(base.tokenizer, example) for example in examples]
            prompts = list(rendered)
            places = ((e.location, len(ids)) for e, ids in zip(examples, rendered, strict=True))
            tokens, line = answer_room(places, tokens, context)
            if line is not None:
                Display().say(line)
        with BmtClient(url) as client:
            api = client.openai()

            def one(example: Example, ids: list[int] | None) -> Completion:
                if ids is not None or isinstance(example.prompt, str):
                    raw = api.completions.create(
                        model=name,
                        prompt=ids or str(example.prompt),
                        temperature=0.0,
                        max_tokens=tokens,
                        extra_body=dict(_SENT),
                    )
                    return _completion(read, raw.choices[0], raw.choices[0].text, None, example)
                done = api.chat.completions.create(
                    model=name,
                    messages=[_sent(m) for m in example.messages],  # type: ignore[misc]
                    temperature=0.0,
                    max_tokens=tokens,
                    extra_body=_body(example),
                )
                message: Any = done.choices[0].message
                # vLLM's name of thoughts, and that of others.
                names = (getattr(message, n, None) for n in ("reasoning", "reasoning_content"))
                apart = next((text for text in names if text is not None), None)
                return _completion(read, done.choices[0], _received(message), apart, example)

            texts = []
            try:
                with (
                    Display().stage(f"answers of {name}", len(examples)) as advance,
                    threads(concurrency) as pool,
                ):
                    asked = [
                        pool.submit(one, *each) for each in zip(examples, prompts, strict=True)
                    ]
                    for future in asked:
                        texts.append(result_of(future))
                        advance(1)
            except Exception as error:  # whatever the transport and the server raise
                raise RolloutError(f"{url} did not answer for {name} ({error})") from error
            if not read.has_tokenizer and (line := _unseen(texts)):
                Display().say(f"warning: {name}: {line}")
            return texts

    return {ours: partial(answers, theirs) for ours, theirs in names.items()}


def _checked(
    url: str, names: Mapping[str, str], base: LocalBase | None, named: bool
) -> tuple[dict[str, str], int | None]:
    """The names, complete, and the server's context, after a comparison of what it serves."""
    from bmt_client import BmtClient, BmtClientError, UsageError

    try:
        with BmtClient(url) as client:
            listed = {model.id: model for model in client.models()}
            fingerprint, own = "", tuple[str, ...]()
            try:
                stated = client.me()
                fingerprint, own = stated.fingerprint, stated.base_names
                if stated.quantized:
                    Display().say(
                        f"server {url} serves a quantized copy of the base ({stated.precision}), "
                        "of which the scores are"
                    )
            except BmtClientError as error:  # a server of an earlier build, or vLLM's own
                if error.status not in _NOT_STATED:
                    raise
                fingerprint = _of_its_masks(client)
    except UsageError as error:
        raise ConfigError(f"server: {error}") from error
    except BmtClientError as error:
        if error.status not in _NOT_STATED:
            raise RolloutError(f"server {url}: {error}") from error
        Display().say(
            f"server {url} states neither its base nor its models ({error.status}), which are not "
            "compared"
        )
        return dict(names), None
    if base is not None and fingerprint and fingerprint != base.fingerprint:
        raise RolloutError(
            f"server {url} serves another base: its weights have the fingerprint "
            f"{fingerprint[:12]}, those of --model {base.fingerprint[:12]}; name the checkpoint "
            "that it serves"
        )
    if base is not None and not fingerprint:
        Display().say(f"server {url} does not state its base, which is not compared with --model")
    found = dict(names)
    if not named and found["base"] not in listed and base is not None and fingerprint and own:
        found["base"] = own[0]  # the weights are the same
    for name in found.values():
        if name not in listed and name.partition("@")[0] not in listed:
            raise RolloutError(
                f"server {url} has no model {name}; it has {', '.join(sorted(listed)[:20])}: set "
                "--base-name or --mask-name"
            )
    return found, next((m.max_model_len for m in listed.values() if m.max_model_len), None)


def _of_its_masks(client: BmtClient) -> str:
    """The fingerprint of a server's base by a mask that it has; empty if it states none."""
    from bmt_client import BmtClientError

    try:
        mask = next(client.list(page_size=1), None)
    except BmtClientError as error:
        if error.status not in _NOT_STATED:
            raise
        return ""
    return "" if mask is None else mask.base.fingerprint


def _completion(
    reader: CompletionReader, choice: Any, text: str, reasoning: str | None, example: Example
) -> Completion:
    """The completion of a choice: by its tokens as in this process, else by the message's text.

    A server's parsers may have taken thoughts and calls out of the text. Calls stay as they were
    read there; thoughts are put back, so that all backends give the same to rewards.
    """
    cut = choice.finish_reason == "length"
    ids = getattr(choice, "token_ids", None)
    calls = getattr(getattr(choice, "message", None), "tool_calls", None)
    if ids and not calls and reader.has_tokenizer:
        made = reader.of_ids(ids, example, cut=cut)
        if text.strip() in made:  # else the tokenizer is of another base
            return made
    return reader.of_message(text, reasoning, example, cut=cut)


def _unseen(texts: Sequence[Completion]) -> str | None:
    """A line on answers that may be thoughts: the prompt's end is not known without a tokenizer."""
    cut = sum(c.cut and bool(c.thoughts.pairs) and c.answer == c.whole != "" for c in texts)
    if not cut:
        return None
    return (
        f"{cut} of {len(texts)} answers were cut at max_new_tokens and show no thought; if the "
        "chat template opens one in the prompt, they are unfinished, and graded all the same: the "
        "base is not on this machine. Name a folder of it by --model, serve it with a reasoning "
        "parser, or raise --max-new-tokens"
    )


def _body(example: Example) -> dict[str, Any]:
    """Fields of a request that OpenAI's client does not have."""
    body: dict[str, Any] = dict(_SENT)
    if example.template_kwargs:
        body["chat_template_kwargs"] = dict(example.template_kwargs)
    if example.tools:
        body["tools"] = [dict(tool) for tool in example.tools]
    return body


def _sent(message: Message) -> dict[str, Any]:
    """A message as OpenAI's API takes it, with the arguments of calls as JSON text."""
    sent = dict(message)
    if "tool_calls" in message:
        sent["tool_calls"] = [
            {
                "id": call.get("id", f"call{number}"),
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                },
            }
            for number, call in enumerate(message["tool_calls"])
        ]
    return sent


def _received(message: Any) -> str:
    """The text of an answer, with the calls that the server's parser has taken out of it."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.function.name)}, '
        f'"arguments": {call.function.arguments}}}\n</tool_call>'
        for call in message.tool_calls or ()
    ]
    return "\n".join(filter(None, [message.content, *calls]))
