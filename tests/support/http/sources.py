"""Servers on loopback that masks are imported from, with names that a resolver of the test has."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trustme

HOSTS = ("files.test", "hub.test", "other.test")
Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer of HTTP/1.1."""
    fields = {"Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(status=status, Location=location)


class SourceServer:
    """Answers of paths; `seen` has (path with query, header fields) of each request."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.scheme = scheme
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.connections = 0

    def url(self, path: str, host: str = "files.test") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                target = head[0].split(" ")[1]
                fields = dict(line.split(": ", 1) for line in head[1:] if line)
                self.seen.append((target, {name.lower(): v for name, v in fields.items()}))
                answer = self.answers.get(target.partition("?")[0], response(status="404 No"))
                if not isinstance(answer, bytes):
                    await answer(writer)
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()


class Authority:
    """Certificates of HOSTS, and the settings of a client that trusts them."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*HOSTS).configure_cert(context)
        return context

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context


@asynccontextmanager
async def source_server(tls: ssl.SSLContext | None) -> Any:
    """A running server; tls: of HTTPS, or None for plain HTTP."""
    made: list[SourceServer] = []
    server = await asyncio.start_server(lambda r, w: made[0].handle(r, w), "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    made.append(SourceServer(port, "https" if tls else "http"))
    try:
        yield made[0]
    finally:
        server.close()


class Names:
    """A resolver; `calls` has the names in order. addresses: of a name, in the order of calls."""

    def __init__(self, *addresses: list[str]) -> None:
        self._addresses = list(addresses) or [["127.0.0.1"]]
        self.calls: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.calls.append(host)
        return self._addresses[min(len(self.calls), len(self._addresses)) - 1]
