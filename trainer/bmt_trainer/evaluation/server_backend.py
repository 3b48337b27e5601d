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
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING, Generate


def by_server(url: str, names: Mapping[str, str], *, concurrency: int) -> dict[str, Generate]:
    """Models of a running server, `concurrency` requests at a time, which vLLM batches.

    names: `base` or `mask` -> the server's name of a model; the API key is BMT_API_KEY. The
    functions raise RolloutError if a request fails.
    """

    def answers(name: str, examples: Sequence[Example], tokens: int) -> list[str]:
        from bmt_client import BmtClient

        with BmtClient(url) as client:
            api = client.openai()

            def one(example: Example) -> str:
                if isinstance(example.prompt, str):
                    raw = api.completions.create(
                        model=name,
                        prompt=example.prompt,
                        temperature=0.0,
                        max_tokens=tokens,
                        extra_body=NEUTRAL_SAMPLING,
                    )
                    return raw.choices[0].text
                done = api.chat.completions.create(
                    model=name,
                    messages=[_sent(m) for m in example.messages],  # type: ignore[misc]
                    temperature=0.0,
                    max_tokens=tokens,
                    extra_body=_body(example),
                )
                return _received(done.choices[0].message)

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


def _body(example: Example) -> dict[str, Any]:
    """Fields of a request that OpenAI's client does not have."""
    body: dict[str, Any] = dict(NEUTRAL_SAMPLING)
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
