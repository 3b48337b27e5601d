"""Questions of the demo to the server, through the stock OpenAI client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
from bmt_trainer.data.examples import Example
from errors import DemoError
from serving import Address

AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """text: what was answered; model: the version that did."""

    text: str
    model: str


@dataclass(frozen=True)
class Stream:
    """models: the versions that the pieces name; before, after: pieces around the action."""

    models: frozenset[str]
    before: int
    after: int


def ask(address: Address, model: str, example: Example, tokens: int) -> Answer:
    """One request by itself."""
    return batch(address, [(model, example)], tokens)[0]


def batch(
    address: Address,
    requests: Sequence[tuple[str, Example]],
    tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Greedy answers to all (model, example) in their order, AT_ONCE of them in flight."""

    async def one(
        client: openai.AsyncOpenAI, gate: asyncio.Semaphore, model: str, example: Example
    ) -> Answer:
        async with gate:
            answer = await client.chat.completions.create(
                model=model,
                messages=[dict(message) for message in example.messages],  # type: ignore[misc]
                temperature=0,
                max_tokens=tokens,
            )
        advance()
        return Answer(answer.choices[0].message.content or "", answer.model)

    async def everything() -> list[Answer]:
        gate = asyncio.Semaphore(AT_ONCE)
        async with openai.AsyncOpenAI(**_options(address)) as client:
            parts: list[Awaitable[Answer]] = [one(client, gate, m, e) for m, e in requests]
            return list(await asyncio.gather(*parts))

    with _failures():
        return asyncio.run(everything())


def stream_around(
    address: Address, model: str, prompt: str, pieces: int, action: Callable[[], object]
) -> Stream:
    """Stream a long answer from `model` and run `action` once `pieces` of it have come."""
    seen: set[str] = set()
    count = 0
    with _failures(), openai.OpenAI(**_options(address)) as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for piece in stream:
            count += 1
            seen.add(piece.model)
            if count == pieces:
                action()
    return Stream(frozenset(seen), pieces, count - pieces)


def _options(address: Address) -> dict[str, Any]:
    return {"base_url": f"{address.url}/v1", "api_key": address.key, "timeout": 300}


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except openai.OpenAIError as error:
        raise DemoError(f"the server did not answer as it should: {error}") from error
