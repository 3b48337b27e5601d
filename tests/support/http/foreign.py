"""Servers that are no bmt-server: a page, another API, faults; and a proxy."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.http.fake_server import listening

HTML = b"<html><body>Welcome to the site</body></html>\n"

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


def _json(status: int, value: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def html(method: str, path: str) -> Answer:
    """A site that answers every address with its page."""
    return 200, {"Content-Type": "text/html"}, HTML


def html_404(method: str, path: str) -> Answer:
    return 404, {"Content-Type": "text/html"}, HTML


def vllm(method: str, path: str) -> Answer:
    """vLLM's OpenAI server with one model."""
    if path == "/v1/models":
        return _json(200, {"object": "list", "data": [{"id": "base", "object": "model"}]})
    message = "Not Found"
    if path == "/v1/chat/completions":
        message = "The model `math` does not exist."
    error = {"message": message, "type": "NotFoundError", "param": None, "code": 404}
    return _json(404, {"error": error})


def fastapi(method: str, path: str) -> Answer:
    return _json(404, {"detail": "Not Found"})


def other_api(method: str, path: str) -> Answer:
    return _json(200, {"status": "success", "data": {"result": []}})


def wrong_types(method: str, path: str) -> Answer:
    """Entries with the fields of a bmt-server and values of other types."""
    entry = {"name": "math", "digest": "ab" * 32, "id": 5, "zeros": "many", "scopes": "admin"}
    return _json(200, {**entry, "data": [entry], "removed": "all", "base": {"model_id": 1}})


def empty(method: str, path: str) -> Answer:
    return 200, {}, b""


def lists(method: str, path: str) -> Answer:
    return _json(200, [1, 2])


def broken(method: str, path: str) -> Answer:
    return 500, {"Content-Type": "text/plain"}, b"Internal Server Error"


def redirect(method: str, path: str) -> Answer:
    return 302, {"Location": "https://sso.example/login"}, b""


def events(method: str, path: str) -> Answer:
    """A stream of events of another kind, without an end mark."""
    return 200, {"Content-Type": "text/event-stream"}, b"event: ping\ndata: {}\n\n"


KINDS = {
    one.__name__: one
    for one in (
        *(html, html_404, vllm, fastapi, other_api, wrong_types, empty, lists, broken, redirect),
        events,
    )
}


@contextlib.contextmanager
def foreign(kind: str) -> Iterator[str]:
    """Run a server of one of KINDS, `closed` (nothing listens) or `hangs`; yields its address."""
    if kind in ("closed", "hangs"):
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            if kind == "hangs":
                unheard.listen(64)
            yield f"http://127.0.0.1:{unheard.getsockname()[1]}"
        return

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _handle(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = KINDS[kind](self.command, urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = do_POST = do_PATCH = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as url:
        yield url


class Proxy:
    """A proxy on the loopback that sends every host's connections to one server."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0  # of the server
        self.seen: list[str] = []  # CONNECT host:port, or the method and absolute address
        self.refusal: int | None = None


@contextlib.contextmanager
def proxying(port: int) -> Iterator[Proxy]:
    """Run a proxy for CONNECT and for absolute addresses, in front of a port of the loopback."""
    proxy = Proxy()
    proxy.port = port

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_CONNECT(self) -> None:
            proxy.seen.append(f"CONNECT {self.path}")
            self.close_connection = True
            if proxy.refusal is not None:
                self.send_error(proxy.refusal)
                return
            with socket.create_connection(("127.0.0.1", proxy.port)) as server:
                self.send_response(200)
                self.end_headers()
                self.wfile.flush()
                _join(self.connection, server)

        def _forward(self) -> None:
            address = urlsplit(self.path)
            proxy.seen.append(f"{self.command} {address.scheme}://{address.netloc}")
            self.close_connection = True
            if proxy.refusal is not None:
                self.send_error(proxy.refusal)
                return
            target = address.path + (f"?{address.query}" if address.query else "")
            head = [f"{self.command} {target} HTTP/1.1", "Connection: close"]
            head += [f"{n}: {v}" for n, v in self.headers.items() if n.lower() != "connection"]
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with socket.create_connection(("127.0.0.1", proxy.port)) as server:
                server.sendall("\r\n".join([*head, "", ""]).encode() + body)
                # The client must not send another request on this connection.
                data = server.recv(65536).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                while data:
                    self.wfile.write(data)
                    data = server.recv(65536)
            self.wfile.flush()

        do_GET = do_PUT = do_DELETE = do_POST = do_PATCH = _forward  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as url:
        proxy.url = url
        yield proxy


def _join(a: socket.socket, b: socket.socket) -> None:
    """Send the bytes of each connection to the other one, until one of them ends."""
    others = {a: b, b: a}
    while True:
        for one in select.select([a, b], [], [], 10)[0] or [None]:
            data = one.recv(65536) if one is not None else b""
            if not data:
                return
            others[one].sendall(data)
