"""HTTP by hand on a real socket: heads and bodies that no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from contextlib import asynccontextmanager

import uvicorn
from bmt_server.api import http_protocol


@asynccontextmanager
async def serving(app, **bounds: float):
    """The app behind our protocol, with shorter times; yields the port."""
    kind = type("BoundedHttpProtocol", (http_protocol.BoundedHttpProtocol,), bounds)
    config = uvicorn.Config(app, http=kind, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


async def said(
    port: int, *pieces: bytes, pause_s: float = 0.0, parse: bool = True
) -> tuple[int, dict, float]:
    """Status, body and seconds of what the server makes of these bytes; status 0: closed."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = bytearray()

    async def hear() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                answer.extend(data)

    hearing = asyncio.create_task(hear())
    with contextlib.suppress(OSError):  # refused before it was all sent
        for piece in pieces:
            if hearing.done():
                break
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
    await asyncio.wait_for(hearing, 10)
    writer.close()
    if not answer:
        return 0, {}, time.monotonic() - start
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if parse else {}, time.monotonic() - start


def head(api, method: str = "POST", path: str = "/v1/chat/completions", **fields: str) -> bytes:
    fields = {"Authorization": f"Bearer {api.keys['admin']}", "Host": "t", **fields}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
