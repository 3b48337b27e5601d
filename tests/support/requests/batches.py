"""Batches of a replica without an engine: their files, the stock client's calls, and what ended."""

from __future__ import annotations

import asyncio
import json

from tests.support.requests.jobs import stock

CHAT = "/v1/chat/completions"


def line(custom_id="a", model="tiny", url=CHAT, method="POST", **body):
    """One request of a batch."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def text(lines):
    """A file of lines; those that are bytes stand as they are."""
    return b"".join(
        one + b"\n" if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines
    )


async def upload(api, lines, key="admin"):
    """Id of a batch's file."""
    async with stock(api, key) as client:
        made = await client.files.create(file=("b.jsonl", text(lines)), purpose="batch")
        return made.id


async def created(api, lines, key="admin", window="24h", endpoint=CHAT, **more):
    """A new batch."""
    file = await upload(api, lines, "admin" if key == "infer" else key)
    async with stock(api, key) as client:
        return await client.batches.create(
            input_file_id=file, endpoint=endpoint, completion_window=window, **more
        )


async def until(api, batch_id, *states, key="admin", within_s=20.0):
    """The batch, once it has one of the states."""
    async with asyncio.timeout(within_s), stock(api, key) as client:
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in states:
                return batch
            await asyncio.sleep(0.02)


async def ended(api, batch_id, key="admin"):
    """The batch, once it has ended, in whatever state."""
    states = ("completed", "failed", "expired", "cancelled")
    return await until(api, batch_id, *states, key=key)


async def rows(api, file_id, key="admin"):
    """Rows of a file, by custom_id; each once."""
    if file_id is None:
        return {}
    async with stock(api, key) as client:
        content = (await client.files.content(file_id)).content
    found = [json.loads(one) for one in content.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def asked(word, custom_id=None, model="tiny", **body):
    """A line that asks a word."""
    messages = [{"role": "user", "content": word}]
    return line(custom_id or word, model, messages=messages, **body)
