"""Limits of the HTTP protocol on a real socket: slow heads, bodies and readers."""

from __future__ import annotations

import asyncio
import socket
import time

import bmt_core
import pytest
import uvicorn
from bmt_server.api import http_protocol

from tests.support.http.raw import head, said, serving
from tests.support.replica import make_mask


def test_servers_configured_later_use_the_protocol():
    http_protocol.install()
    config = uvicorn.Config(lambda: None)
    config.load()
    assert config.http_protocol_class is http_protocol.BoundedHttpProtocol


async def test_a_partial_head_times_out(api):
    async with serving(api.app, head_timeout_s=0.3) as port:
        whole = head(api)
        for pieces in ([whole[:40]], [whole[:-2]], [bytes([b]) for b in whole[:30]]):
            status, body, seconds = await said(port, *pieces, pause_s=0.02)
            assert (status, body["error"]["code"]) == (408, "head_timeout")
            assert 0.25 < seconds < 2
        status, _, seconds = await said(port)
        assert (status, seconds < 2) == (0, True), "a silent client gets no response"


async def test_a_missing_body_times_out(api):
    async with serving(api.app, body_timeout_s=0.3, min_body_rate=100_000) as port:
        for method, path, kind in (
            ("POST", "/v1/chat/completions", "application/json"),
            ("PUT", "/v1/masks/m", "application/octet-stream"),
        ):
            fields = {"Content-Length": "5000", "Content-Type": kind}
            start = head(api, method, path, **fields)
            for pieces in ([start], [start, *[b"x"] * 30]):
                status, body, seconds = await said(port, *pieces, pause_s=0.02)
                assert (status, body["error"]["code"]) == (408, "body_timeout"), path
                assert 0.25 < seconds < 2
    # A slow client at the required rate is served.
    async with serving(api.app, body_timeout_s=0.3, min_body_rate=100) as port:
        data = bmt_core.encode(make_mask())
        fields = {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}
        slow = [data[i : i + 20] for i in range(0, len(data), 20)]
        fields["Connection"] = "close"
        status, body, seconds = await said(
            port, head(api, "PUT", "/v1/masks/slow", **fields), *slow, pause_s=0.04
        )
        assert status == 201, body
        assert seconds > 0.4
    assert await api.state.registry.names() == [("default", "slow")]


async def test_a_request_is_answered_once(api):
    """The refusal comes before the body, whose rest never arrives."""
    async with serving(api.app, body_timeout_s=0.3) as port:
        fields = {"Content-Length": str(1 << 30), "Content-Type": "application/octet-stream"}
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(api, "PUT", "/v1/masks/m", **fields))
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


async def test_heads_are_bounded(api):
    async with serving(api.app) as port:
        many = {f"x-{i}": "1" for i in range(20_000)}
        for raw in (
            head(api, **{"x-big": "a" * 100_000}),
            head(api, **{"x-endless": "a" * (64 << 20)}),
            head(api, **many),
            head(api, **{f"x-{i}": "1" for i in range(100)}),
            head(api, path="/v1/models/" + "a" * 50_000),
        ):
            status, body, seconds = await said(port, raw)
            # Data in flight when the connection closes may reset it.
            assert status in (431, 0), (status, body)
            assert seconds < 2
        status, body, _ = await said(port, head(api, **{"x-big": "a" * 100_000}))
        assert (status, body["error"]["code"]) == (431, "head_too_large")
        fine = head(api, "GET", "/v1/masks", Connection="close", **{"x-big": "a" * 20_000})
        assert (await said(port, fine))[0] == 200
        status, body, _ = await said(port, b"GARBAGE\r\n\r\n")
        assert (status, body["error"]["code"]) == (400, "bad_http")


async def test_keep_alive_connections_are_served_again(api):
    async with serving(api.app, head_timeout_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(head(api, "GET", "/v1/masks"))
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            size = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
            await asyncio.sleep(0.5)  # idle time does not count as the head's
        writer.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
async def test_a_reader_that_never_reads_is_disconnected(api):
    """Its request ends too and releases all that it holds."""
    ended = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        gone = asyncio.create_task(receive())
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    async with serving(app, read_timeout_s=1.0) as port:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head(api, "GET", "/"))
        start = time.monotonic()
        await asyncio.wait_for(ended.wait(), 20)
        assert 0.5 < time.monotonic() - start < 10
        client.close()
