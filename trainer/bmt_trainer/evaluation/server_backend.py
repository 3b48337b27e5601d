"""Greedy answers of a running server's models, by its API of OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bmt_trainer.console import Display
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.errors import RolloutError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING, Generate
from bmt_trainer.evaluation.thoughts import Completion

# The tokens show thoughts whose delimiters are special tokens, and those that a parser took away.
_SENT: Mapping[str, Any] = {**NEUTRAL_SAMPLING, "return_token_ids": True}


def by_server(
    url: str,
    names: Mapping[str, str],
    *,
    concurrency: int,
    reader: CompletionReader | None = None,
) -> dict[str, Generate]:
    """Models of a running server, `concurrency` requests at a time, which vLLM batches.

    names: `base` or `mask` -> the server's name of a model; the API key is BMT_API_KEY. reader:
    finds thoughts, by the base's tokenizer if it is here. The functions raise RolloutError if a
    request fails.
    """
    read = reader or CompletionReader(None)

    def answers(name: str, examples: Sequence[Example], tokens: int) -> list[Completion]:
        from bmt_client import BmtClient

        with BmtClient(url) as client:
            api = client.openai()

            def one(example: Example) -> Completion:
                if isinstance(example.prompt, str):
                    raw = api.completions.create(
                        model=name,
                        prompt=example.prompt,
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
                    ThreadPoolExecutor(concurrency) as pool,
                ):
                    for text in pool.map(one, examples):
                        texts.append(text)
                        advance(1)
                    return texts
            except Exception as error:  # whatever the transport and the server raise
                raise RolloutError(f"{url} did not answer for {name} ({error})") from error

    return {ours: partial(answers, theirs) for ours, theirs in names.items()}


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
