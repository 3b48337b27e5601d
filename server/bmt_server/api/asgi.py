"""ASGI: types of its messages and apps, and the headers of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_CONDITION = "if-match"
_CREDENTIALS = ("authorization", "x-api-key")


def read_headers(scope: Message) -> dict[str, str]:
    """Last value of each header, by lower-case name; a repeated credential header counts as none.

    Two credentials would leave it open which of them a proxy in front has checked. Conditions in
    several headers are one list.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        if name in _CREDENTIALS and name in headers:
            value = ""
        elif name == _CONDITION and name in headers:
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers
