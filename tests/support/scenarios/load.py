"""Requests of a load: a small HTTP client on asyncio that times first tokens.

A connection for each request, so that a proxy in between sees each of them; and light, for it
shares its processors with the engine that it measures.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

WITHIN_S = 120.0


@dataclass(slots=True)
class Answer:
    """One response. ended: `whole`, `error` (an SSE one), `cut`, `late` or, unconnected, `refused`.

    Times are seconds; ttft_s: to the first token, total_s: to the end.
    """

    status: int = 0
    ended: str = "refused"
    began: float = field(default_factory=time.monotonic)
    ttft_s: float = float("nan")
    total_s: float = float("nan")
    model: str = ""
    code: str = ""
    retry_after: str = ""
    tokens: int = 0

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.ended == "whole"


@dataclass(frozen=True, slots=True)
class Target:
    """Target of requests: a loopback port and a key."""

    port: int
    key: str

    async def ask(
        self, model: str, *, tokens: int = 8, prompt: str = "The sun is", within_s: float = WITHIN_S
    ) -> Answer:
        """One streamed completion of exactly `tokens` tokens."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        answer = Answer()
        try:
            async with asyncio.timeout(within_s):
                await self._exchange(answer, body)
        except TimeoutError:
            answer.ended = "late"
        except (OSError, asyncio.IncompleteReadError):
            answer.ended = "cut" if answer.status else "refused"
        answer.total_s = time.monotonic() - answer.began
        return answer

    async def _exchange(self, answer: Answer, body: dict[str, Any]) -> None:
        reader, writer = await self.send("POST", "/v1/completions", body)
        try:
            answer.status, headers = await read_head(reader)
            answer.retry_after = headers.get("retry-after", "")
            if answer.status != 200:
                answer.ended = "whole"
                error = json.loads(await reader.read() or b"{}").get("error", {})
                answer.code = str(error.get("code", ""))
                return
            answer.ended = "cut"
            while line := await reader.readline():
                if line.startswith(b"data: [DONE]"):
                    # vLLM ends a stream that failed in this way too.
                    answer.ended = "error" if answer.ended == "error" else "whole"
                elif line.startswith(b"data: "):
                    self._see(answer, json.loads(line[6:]))
        finally:
            writer.transport.abort()

    def _see(self, answer: Answer, event: dict[str, Any]) -> None:
        if "error" in event:
            answer.ended = "error"
            return
        if answer.tokens == 0:
            answer.ttft_s = time.monotonic() - answer.began
        answer.model = event.get("model", "")
        answer.tokens += 1

    async def send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request whole; the response is the caller's to read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        return reader, writer

    async def get(self, path: str, within_s: float = 10.0) -> tuple[int, bytes]:
        """Status and body; status 0 where there is no answer in time."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await self.send("GET", path)
                try:
                    status, headers = await read_head(reader)
                    size = headers.get("content-length")
                    body = await (reader.read() if size is None else reader.readexactly(int(size)))
                    return status, body
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return 0, b""

    async def figure(self, name: str) -> float:
        """The sum over labels of one figure of /metrics."""
        _, text = await self.get("/metrics")
        lines = [x for x in text.decode().splitlines() if x.startswith((name + "{", name + " "))]
        assert lines, f"no figure {name}"
        return sum(float(x.rpartition(" ")[2]) for x in lines)


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(x.split(": ", 1) for x in head[1:] if ": " in x)
    return int(head[0].split()[1]), {k.lower(): v for k, v in headers.items()}


async def closed_loop(
    ask: Callable[[int], Awaitable[Answer]], requests: int, at_once: int
) -> list[Answer]:
    """So many requests, always `at_once` of them in flight; ask: gets the request's number."""
    left = iter(range(requests))
    found: list[Answer] = []

    async def client() -> None:
        for number in left:
            found.append(await ask(number))

    await asyncio.gather(*(client() for _ in range(at_once)))
    return found


async def open_loop(
    ask: Callable[[int], Awaitable[Answer]], requests: int, gaps: Callable[[], float]
) -> list[Answer]:
    """Requests that arrive whatever becomes of those before; gaps: seconds to the next."""
    tasks = []
    due = time.monotonic()
    for number in range(requests):
        due += gaps()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(number)))
    return list(await asyncio.gather(*tasks))


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> float:
    """Seconds until it holds. Raises AssertionError where it does not in time."""
    start = time.monotonic()
    while not await condition():
        assert time.monotonic() - start < within_s, f"not within {within_s:g} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - start
