"""What the demo asks the server, through the stock OpenAI client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import openai
from bmt_trainer.data import Example
from bmt_trainer.evaluate import Score, grade

from server import Address

AT_ONCE = 64
MAX_TOKENS = 40


def _client(address: Address) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address.url}/v1", api_key=address.key, timeout=300)


async def _one(client: openai.AsyncOpenAI, model: str, example: Example) -> tuple[str, str]:
    answer = await client.chat.completions.create(
        model=model,
        messages=[dict(message) for message in example.prompt],  # type: ignore[misc]
        temperature=0,
        max_tokens=MAX_TOKENS,
    )
    return answer.choices[0].message.content or "", answer.model


def side_by_side(
    address: Address, models: Sequence[str], examples: Sequence[Example]
) -> list[list[tuple[str, str]]]:
    """(text, model that answered) of each example under each model, all in one batch."""

    async def run() -> list[list[tuple[str, str]]]:
        async with _client(address) as client:
            flat = await asyncio.gather(*(_one(client, m, e) for e in examples for m in models))
        width = len(models)
        return [flat[i : i + width] for i in range(0, len(flat), width)]

    return asyncio.run(run())


def accuracy(
    address: Address,
    model: str,
    examples: Sequence[Example],
    advance: Callable[[int], None],
) -> Score:
    """Exact match of `model` on the examples, through the server."""

    async def run() -> list[str]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(client: openai.AsyncOpenAI, example: Example) -> str:
            async with gate:
                text, _ = await _one(client, model, example)
            advance(1)
            return text

        async with _client(address) as client:
            return list(await asyncio.gather(*(one(client, e) for e in examples)))

    return grade(asyncio.run(run()), examples)


def stream_while(
    address: Address, model: str, prompt: str, after: int, action: Callable[[], object]
) -> tuple[set[str], int]:
    """Stream from `model`; run `action` after some pieces. Versions that answered, and pieces."""
    with openai.OpenAI(base_url=f"{address.url}/v1", api_key=address.key) as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=200,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        seen: set[str] = set()
        pieces = 0
        for piece in stream:
            pieces += 1
            seen.add(piece.model)
            if pieces == after:
                action()
    return seen, pieces
