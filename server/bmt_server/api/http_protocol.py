"""HTTP/1.1 protocol of uvicorn with limits on the request head and on slow clients.

uvicorn has no such limits: a partial head, a body that never arrives or a client that never reads
holds a connection forever, and a head may have any size. This class extends uvicorn's protocol on
httptools (uvicorn 0.54, `protocols/http/httptools_impl.py`); vLLM asks for the protocol named
`auto`, which `install` points to this class.

    head      32 KiB and 100 fields at most (431), complete within 10 s (408)
    body      60 s, and longer while it arrives at 8 KiB/s or more (408)
    response  the connection ends if the client acknowledges nothing for 60 s
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bmt_server.api.response.cors import allowed_origin

MAX_HEAD_BYTES, MAX_HEAD_FIELDS = 32 << 10, 100
HEAD_TIMEOUT_S, BODY_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0, 60.0
MIN_BODY_RATE = 8 << 10  # bytes per second
_JSON = (
    b'{"error": {"message": "%s", "type": "invalid_request_error", "code": "%s", "param": null,'
    b' "request_id": null}}'
)


class _HeadTooLarge(Exception):
    """Aborts the parser from inside one of its callbacks."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A timer runs while the server waits for the client to send something."""

    head_timeout_s, body_timeout_s = HEAD_TIMEOUT_S, BODY_TIMEOUT_S
    read_timeout_s, min_body_rate = READ_TIMEOUT_S, MIN_BODY_RATE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = True, 0
        self._body_bytes, self._body_started = 0, 0.0
        self._start_head_timer()
        _set_read_timeout(transport, self.read_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            if not self._head_bytes and self._timer is None:
                self._start_head_timer()  # the next request of a keep-alive connection
            self._head_bytes += len(data)
        super().data_received(data)
        # The parser reports a field only at its end, so an endless field is counted here.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEAD_FIELDS:
            raise _HeadTooLarge
        self._cancel_timer()
        self._in_head, self._head_bytes = False, 0
        self._body_bytes, self._body_started = 0, self.loop.time()
        self._timer = self.loop.call_later(self.body_timeout_s, self._check_body_rate)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._cancel_timer()
        self._in_head = True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._cancel_timer()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when its parser fails, also after `_HeadTooLarge`."""
        self._cancel_timer()
        fields = len(self.headers or ())  # None until the first request line
        if self._head_bytes > MAX_HEAD_BYTES or fields > MAX_HEAD_FIELDS:
            self._refuse_head()
        else:
            self._refuse(400, "bad_http", "the request is not valid HTTP")

    def _start_head_timer(self) -> None:
        self._timer = self.loop.call_later(
            self.head_timeout_s,
            lambda: self._refuse(
                408,
                "head_timeout",
                f"the request head did not arrive within {self.head_timeout_s:g} s",
            ),
        )

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "head_too_large",
            f"the request head is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_FIELDS} fields",
        )

    def _check_body_rate(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            # This server is the one that does not read, for example while other uploads run.
            self._body_started = now - self._body_bytes / self.min_body_rate
        deadline = self._body_started + self.body_timeout_s + self._body_bytes / self.min_body_rate
        if deadline > now:
            self._timer = self.loop.call_later(max(deadline - now, 0.01), self._check_body_rate)
            return
        self._refuse(
            408,
            "body_timeout",
            f"{self._body_bytes} bytes of the body arrived in {now - self._body_started:.0f} s; "
            f"send at least {self.min_body_rate} bytes per second after {self.body_timeout_s:g} s",
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _may_respond(self) -> bool:
        """False if a response to this request, or to the previous one, has started."""
        if self._in_head:
            return self.cycle is None or self.cycle.response_complete
        return not self.cycle.response_started

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Send an error if no response has started, and close the connection."""
        self._cancel_timer()
        if self.transport.is_closing():
            return
        idle = not self._head_bytes and self._in_head
        if self._may_respond() and not idle:
            body = _JSON % (message.encode(), code.encode())
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n%s\r\n%s"
                % (status, HTTPStatus(status).phrase.encode(), len(body), self._cors(), body)
            )
        if self.cycle is not None and not self.cycle.response_complete:
            # The app stops waiting for the rest of the body and sends nothing more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _cors(self) -> bytes:
        """Header lines that let a browser's page read the error."""
        # uvicorn wraps the app in its layer for proxies.
        app = getattr(self.app, "app", self.app)
        given = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers or ()
        }
        lines = allowed_origin(app, given) if hasattr(app, "state") else ()
        return b"".join(b"%s: %s\r\n" % line for line in lines)


def _set_read_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Let the kernel close a connection whose client acknowledges nothing for that long.

    Neither uvicorn nor asyncio limits how long a response may wait to be written.
    """
    handle: Any = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None and handle is not None and handle.family != socket.AF_UNIX:
        handle.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def install() -> None:
    """Make this the protocol of servers that are configured from now on."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttpProtocol.__name__}"
