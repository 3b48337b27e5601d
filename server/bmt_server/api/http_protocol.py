"""The HTTP protocol itself: bounds on a request's head and on the time that a client may take.

uvicorn has none of its own: a head that is sent half, a body that does not come or a reader that
never reads hold a connection for ever, and a head may be of any size. This is uvicorn's protocol on
httptools with those bounds (uvicorn 0.54, `protocols/http/httptools_impl.py`); vLLM asks for the
protocol called `auto`, which `install` makes this one.

    head    32 KiB and 100 fields at most (431), whole within 10 s (408)
    body    60 s, and longer as long as it comes at 8 KiB/s (408)
    answer  what a client does not read for 60 s ends the connection
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES, HEAD_FIELDS = 32 << 10, 100
HEAD_S, BODY_S, READ_S = 10.0, 60.0, 60.0
BODY_RATE = 8 << 10  # bytes a second
_JSON = (
    b'{"error": {"message": "%s", "type": "invalid_request_error", "code": "%s", "param": null}}'
)


class _TooLarge(Exception):
    """Stops the parser inside one of its calls."""


class Edge(HttpToolsProtocol):
    """One connection. A timer runs while the client has something to send."""

    head_s, body_s, read_s = HEAD_S, BODY_S, READ_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = True, 0
        self._body_bytes, self._body_since = 0, 0.0
        self._wait_for_head()
        _end_by_silence(transport, self.read_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            if not self._head_bytes and self._timer is None:
                self._wait_for_head()  # the next request of a kept connection
            self._head_bytes += len(data)
        super().data_received(data)
        # A field that goes on and on is not given out before its end.
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEAD_FIELDS:
            raise _TooLarge
        self._no_timer()
        self._in_head, self._head_bytes = False, 0
        self._body_bytes, self._body_since = 0, self.loop.time()
        self._timer = self.loop.call_later(self.body_s, self._look_at_body)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._no_timer()
        self._in_head = True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._no_timer()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where its parser fails, also where that is our doing."""
        self._no_timer()
        size = len(getattr(self, "headers", None) or ())
        if self._head_bytes > HEAD_BYTES or size > HEAD_FIELDS:
            self._refuse_head()
        else:
            self._refuse(400, "bad_http", "this is not HTTP as a server can read it")

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(
            self.head_s,
            lambda: self._refuse(
                408, "head_timeout", f"the request's head did not come within {self.head_s:g} s"
            ),
        )

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "head_too_large",
            f"the request's head is larger than {HEAD_BYTES} bytes or {HEAD_FIELDS} fields",
        )

    def _look_at_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            # It is we who do not read, as while other uploads are under way.
            self._body_since = now - self._body_bytes / BODY_RATE
        left = self._body_since + self.body_s + self._body_bytes / BODY_RATE - now
        if left > 0:
            self._timer = self.loop.call_later(max(left, 0.01), self._look_at_body)
            return
        self._refuse(
            408,
            "body_timeout",
            f"{self._body_bytes} bytes of the body came in {now - self._body_since:.0f} s; "
            f"at least {BODY_RATE} a second are wanted after {self.body_s:g} s",
        )

    def _no_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _may_answer(self) -> bool:
        """False where an answer to this request, or the one before, has begun."""
        if self._in_head:
            return self.cycle is None or self.cycle.response_complete
        return not self.cycle.response_started

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Say why where no answer was begun, and end the connection."""
        self._no_timer()
        if self.transport.is_closing():
            return
        idle = not self._head_bytes and self._in_head
        if self._may_answer() and not idle:
            body = _JSON % (message.encode(), code.encode())
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%s"
                % (status, HTTPStatus(status).phrase.encode(), len(body), body)
            )
        if self.cycle is not None and not self.cycle.response_complete:
            # The app is to stop waiting for the rest, and to send nothing more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def _end_by_silence(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel end a connection whose client neither reads nor acknowledges for so long.

    Nothing of uvicorn or asyncio does it while an answer waits to be written, nor after it.
    """
    handle: Any = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if option is not None and handle is not None and handle.family != socket.AF_UNIX:
        handle.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def install() -> None:
    """Make it the protocol of servers that are configured from now on."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Edge.__name__}"
