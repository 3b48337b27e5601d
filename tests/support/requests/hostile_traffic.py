"""Hostile traffic for a server that serves others meanwhile: bodies, files, keys, connections.

Each kind is a coroutine that attacks once; `HostileTraffic.run` takes them in turns. An attack is
counted by the status of its answer (0: the connection was closed without one).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from tests.support.requests.bodies import HostileBody
from tests.support.scenarios.load import Target, read_head

CLOSED_S = 75.0  # a connection that sends no more is closed by then


@dataclass(frozen=True)
class Wrong:
    """An answer that an attack should not have: of 5xx, a success, or none in time."""

    kind: str
    status: int
    detail: str
    began: float
    ended: float = field(default_factory=time.monotonic)


@dataclass
class HostileTraffic:
    """Attacks on one server.

    bodies: (path, body) of hostile requests; mask: a sound file, which is damaged at random; model:
    the name of a mask that is served.
    """

    to: Target
    bodies: Sequence[tuple[str, HostileBody]]
    mask: bytes
    model: str
    seed: int = 24
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[Wrong] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._kinds = (
            self._body,
            self._damaged_mask,
            self._without_right,
            self._unknown_model,
            self._half_request,
            self._no_http,
            self._abandoned_stream,
            self._unread_stream,
            self._odd_names,
        )
        # Connections that are held for a minute, each in a task of its own.
        self._held: set[asyncio.Task[None]] = set()

    def _connected(self) -> httpx2.AsyncClient:
        url = f"http://127.0.0.1:{self.to.port}"
        key = {"Authorization": f"Bearer {self.to.key}", "Content-Type": "application/json"}
        return httpx2.AsyncClient(base_url=url, headers=key, timeout=120)

    async def send_each(self) -> None:
        """Each body once, so that the largest ones have taken their memory; nothing is counted."""
        async with self._connected() as client:
            for path, body in self.bodies:
                await client.post(path, content=body.data)

    async def run(self, over: Callable[[], bool], pause_s: float) -> None:
        """Attack until it is over, a pause after each attack."""
        async with self._connected() as client:
            self._client = client
            while not over():
                for attack in self._kinds:
                    self._began = time.monotonic()
                    with contextlib.suppress(
                        httpx2.HTTPError, OSError, asyncio.IncompleteReadError
                    ):
                        await attack()
                    await asyncio.sleep(pause_s)
        await asyncio.gather(*self._held)

    def _count(
        self,
        kind: str,
        status: int,
        detail: str = "",
        *,
        refused: bool = True,
        began: float | None = None,
    ) -> None:
        """refused: whether only a 4xx, or a closed connection, is right."""
        self.answers[kind, status] += 1
        if status >= 500 or (refused and 200 <= status < 300):
            began = self._began if began is None else began
            self.wrong.append(Wrong(kind, status, detail[:300], began))

    async def _body(self) -> None:
        path, body = self._chance.choice(self.bodies)
        answer = await self._client.post(path, content=body.data)
        # Some are merely odd, and answered.
        self._count("body", answer.status_code, f"{path} {body.name} {answer.text}", refused=False)

    async def _damaged_mask(self) -> None:
        data = bytearray(self.mask)
        for _ in range(self._chance.randint(1, 6)):
            data[self._chance.randrange(len(data))] ^= self._chance.randint(1, 255)
        if self._chance.random() < 0.5:
            del data[self._chance.randrange(len(data)) :]
        name = f"damaged-{self._chance.randrange(8)}"
        answer = await self._client.put(f"/v1/masks/{name}", content=bytes(data))
        self._count("damaged mask", answer.status_code, answer.text)

    async def _without_right(self) -> None:
        key = self._chance.choice(("", "Bearer", "Bearer x", f"Bearer bmt_{secrets.token_hex(32)}"))
        method, path = self._chance.choice(
            (
                ("POST", "/v1/completions"),
                ("GET", "/v1/masks"),
                ("DELETE", f"/v1/masks/{self.model}"),
            )
        )
        content = b'{"model": "smol", "prompt": "x"}' if method == "POST" else None
        answer = await self._client.request(
            method, path, headers={"Authorization": key}, content=content
        )
        self._count("without a right", answer.status_code, answer.text)

    async def _unknown_model(self) -> None:
        name = self._chance.choice(
            (
                "no-such",
                f"{self.model}@{secrets.token_hex(6)}",
                f"{self.model}:no",
                "x" * 4000,
                "../m0",
            )
        )
        body = {"model": name, "prompt": "x", "max_tokens": 1}
        answer = await self._client.post("/v1/completions", content=json.dumps(body))
        self._count("unknown model", answer.status_code, answer.text)

    async def _odd_names(self) -> None:
        name = self._chance.choice(("%00", "..%2f..%2fx", "a" * 3000, "%F0%9F%98%80", "A b"))
        answer = await self._client.put(f"/v1/masks/{name}", content=self.mask)
        self._count("odd name", answer.status_code, answer.text)

    async def _half_request(self) -> None:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.to.key}\r\n"
            "Content-Length: 90\r\n\r\n"
        ).encode()
        cut = head[: self._chance.choice((20, len(head) - 3, len(head)))]
        self._hold("half a request", cut + b'{"mod' * (len(cut) == len(head)))

    async def _no_http(self) -> None:
        data = self._chance.choice(
            (
                secrets.token_bytes(200),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain port
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
                b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
            )
        )
        self._hold("not HTTP", data)

    def _hold(self, kind: str, data: bytes) -> None:
        task = asyncio.create_task(self._closed(kind, data))
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _closed(self, kind: str, data: bytes) -> None:
        """Send this and no more; the server ends the connection in time."""
        status, answer, began = 0, b"", time.monotonic()
        try:
            async with asyncio.timeout(CLOSED_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.to.port)
                writer.write(data)
                while piece := await reader.read(65536):
                    answer = (answer + piece)[:200]
                writer.close()
        except TimeoutError:
            detail = f"open for more than {CLOSED_S:g} s after {data[:60]!r}"
            self.wrong.append(Wrong(kind, 0, detail, began))
        except OSError:
            pass
        if answer.startswith(b"HTTP/1.1 "):
            status = int(answer[9:12])
        self._count(kind, status, answer.decode("latin-1"), began=began)

    async def _abandoned_stream(self) -> None:
        await self._stream("abandoned stream", tokens=40, read_s=0.3, left_s=0)

    async def _unread_stream(self) -> None:
        await self._stream("unread stream", tokens=40, read_s=0, left_s=2.0)

    async def _stream(self, kind: str, *, tokens: int, read_s: float, left_s: float) -> None:
        body = {"model": self.model, "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
        reader, writer = await self.to.send("POST", "/v1/completions", {**body, "stream": True})
        try:
            async with asyncio.timeout(60):
                status, _ = await read_head(reader)
            self._count(kind, status, refused=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(read_s):
                    while await reader.read(1024):
                        pass
            await asyncio.sleep(left_s)
        finally:
            writer.transport.abort()
