"""Streams of server-sent events, with the retries and the errors of all other requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from bmt_client._client import BmtClient
from bmt_client._errors import BmtClientError, ProtocolError, Unavailable
from bmt_client._retry import exchange
from bmt_client._transport import Receiver, Request, Response, unexpected

if TYPE_CHECKING:
    import httpx2

# Longest silence of a model that generates, seconds; the default of one attempt is too short.
SILENCE_S = 600.0
END = "[DONE]"


@contextmanager
def open_stream(client: BmtClient, request: Request) -> Iterator[Iterator[dict[str, Any]]]:
    """Send `request`, and yield the JSON objects of its events as they arrive.

    Raises ProtocolError for an answer that is no stream of events, or that ends before its end
    mark; Unavailable if the connection breaks; the error of an event with one.
    """
    import httpx2

    with ExitStack() as stack:
        opened: list[httpx2.Response] = []

        def send(request: Request) -> Response:
            arguments = client._request_arguments(request)
            try:
                response = stack.enter_context(
                    client._http.stream(**arguments, content=request.body, timeout=_timeout(client))
                )
                opened[:] = [response]
                body = b"" if _is_stream(response) else _read(request, response)
            except httpx2.RequestError as error:
                raise client._no_answer(error, _silence_s(client)) from error
            return client._response(response.status_code, response.headers, body)

        answer = client._run(exchange(request, client._policy), send)
        if not _is_stream(opened[0]):
            raise unexpected(answer, "the answer is not a stream of events but")
        yield _events(client, opened[0])


def _events(client: BmtClient, response: httpx2.Response) -> Iterator[dict[str, Any]]:
    import httpx2

    try:
        for event in httpx2.EventSource(response):
            if event.data == END:
                return
            value = _parsed(event.data)
            if error := value.get("error"):
                raise _error(error)
            yield value
    except httpx2.RequestError as error:
        lost = client._no_answer(error, _silence_s(client))
        raise Unavailable(f"the answer broke off: {lost}", code=lost.code) from error
    raise ProtocolError(f"the answer ended before its end mark, {END}", code="stream_ended")


def _parsed(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"an event of the answer is not a JSON object but {data[:40]!r}")
    return value


def _error(error: object) -> BmtClientError:
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) and message else "the server ended the answer"
    return BmtClientError(text, code="stream_error")


def _timeout(client: BmtClient) -> httpx2.Timeout:
    import httpx2

    given = client._http.timeout
    return httpx2.Timeout(
        connect=given.connect, read=_silence_s(client), write=given.write, pool=given.pool
    )


def _silence_s(client: BmtClient) -> float:
    return client._target.timeout_s if client._target.timeout_given else SILENCE_S


def _is_stream(response: httpx2.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code < 300 and kind == "text/event-stream"


def _read(request: Request, response: httpx2.Response) -> bytes:
    receiver = Receiver(request, response.status_code, response.headers)
    for chunk in response.iter_bytes():
        receiver.take(chunk)
        if response.status_code < 300:
            # A page of a server of another kind: its start is enough for the error.
            break
    return receiver.body()
