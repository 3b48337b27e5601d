"""Download of a file over HTTPS: bounded in hops, size and time, to checked addresses alone."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

import httpcore2

from bmt_server.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    Invalid,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from bmt_server.sources.connections import CONNECT_S, CheckedNetwork
from bmt_server.sources.locations import WebFile, parse_url

logger = logging.getLogger("vllm.bmt_server")

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Between two parts of an answer; the import as a whole has a bound of its own.
_SILENCE_S = 10.0
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "bmt-server"}

Received = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes of a file, where they came from, and the address of the peer (empty: none)."""

    data: bytes
    source: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class WebRequest:
    """A file to get.

    shown: the source in errors and records. may_visit: raises ApiError for a URL that this source
    does not lead to. credentials: header fields for the origin of `start` alone. headers_seen:
    called with the header fields of each answer.
    """

    start: WebFile
    shown: str
    may_visit: Callable[[WebFile], None]
    credentials: Mapping[str, str]
    headers_seen: Callable[[Mapping[str, str]], None] = lambda headers: None


class WebReader:
    """Reads files of http and https. trust: makes the TLS settings; called once, in a thread."""

    def __init__(self, trust: Callable[[], ssl.SSLContext]) -> None:
        self._trust = trust
        self._context: ssl.SSLContext | None = None

    async def read(
        self, request: WebRequest, network: CheckedNetwork, max_bytes: int, received: Received
    ) -> Fetched:
        """The file at a URL, by way of its redirects. Raises ApiError.

        The caller bounds the time. received: called with the size of each part.
        """
        if self._context is None:
            self._context = await self._made_context(request)
        file = request.start
        async with httpcore2.AsyncConnectionPool(
            ssl_context=self._context, network_backend=network, max_connections=1, retries=0
        ) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                request.may_visit(file)
                found = await self._visit(pool, request, file, max_bytes, received)
                if isinstance(found, bytes):
                    return Fetched(found, request.shown, network.address)
                file = found
        raise Invalid(
            f"{request.shown[:300]} leads through more than {MAX_REDIRECTS} redirects; name the "
            "file's own address",
            code="source_redirects",
            param="source",
        )

    async def _made_context(self, request: WebRequest) -> ssl.SSLContext:
        """The TLS settings. Raises Unavailable if the operator's certificates cannot be read."""
        try:
            return await asyncio.to_thread(self._trust)
        except OSError as error:
            logger.error(
                "Imports fail: the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read: "
                "%s.",
                error,
            )
            raise unavailable(
                request.shown, "this server cannot read its certificates (SSL_CERT_FILE)"
            ) from None

    async def _visit(
        self,
        pool: httpcore2.AsyncConnectionPool,
        request: WebRequest,
        file: WebFile,
        max_bytes: int,
        received: Received,
    ) -> bytes | WebFile:
        """The file's bytes, or the place that a redirect names."""
        port = "" if file.is_usual_port else f":{file.port}"
        headers = {**_HEADERS, "Host": f"{file.host}{port}"}
        if file.origin == request.start.origin:
            headers |= request.credentials
        url = httpcore2.URL(
            scheme=file.scheme, host=file.host.strip("[]"), port=file.port, target=file.target
        )
        timeouts = {"connect": CONNECT_S, "read": _SILENCE_S, "write": _SILENCE_S, "pool": 1.0}
        try:
            async with pool.stream(
                "GET", url, headers=list(headers.items()), extensions={"timeout": timeouts}
            ) as answer:
                fields = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in answer.headers
                }
                request.headers_seen(fields)
                if answer.status in _REDIRECTS and "location" in fields:
                    return _target(request, file, fields["location"])
                _check_answer(request, answer.status, fields, max_bytes)
                data = bytearray()
                async for part in answer.aiter_stream():
                    if len(data) + len(part) > max_bytes:
                        raise too_large(request.shown, max_bytes)
                    received(len(part))
                    data += part
                return bytes(data)
        except (
            *(httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError),
            *(httpcore2.UnsupportedProtocol, OSError),
        ) as error:
            raise _failed(request, file, error) from None


def too_large(shown: str, max_bytes: int) -> PayloadTooLarge:
    """The error for a file beyond the bound of uploads."""
    return PayloadTooLarge(
        f"{shown[:300]} has more than {max_bytes} bytes; a mask of this base model has at most "
        "that many",
        param="source",
    )


def missing(shown: str) -> NotFound:
    """The error for a source that does not exist."""
    return NotFound(f"there is no {shown[:300]}", code="source_not_found", param="source")


def forbidden(shown: str) -> Forbidden:
    """The error for a source that this server's credentials may not read."""
    return Forbidden(
        f"this server may not read {shown[:300]}; its operator sets the credentials of imports",
        code="source_forbidden",
        param="source",
    )


def unavailable(shown: str, reason: str) -> Unavailable:
    """The error for a source that does not answer as it should, for now."""
    return Unavailable(
        f"{shown[:300]} could not be read: {reason}; retry later, or upload the file",
        code="source_unavailable",
    )


def _target(request: WebRequest, file: WebFile, location: str) -> WebFile:
    """The place that a redirect names. Raises Invalid."""
    try:
        return parse_url(urljoin(f"{file.shown}", location))
    except (BadRequest, ValueError):
        raise Invalid(
            f"{request.shown[:300]} redirects to an address that imports do not follow; name the "
            "file's own address",
            code="source_redirects",
            param="source",
        ) from None


def _check_answer(
    request: WebRequest, status: int, fields: Mapping[str, str], max_bytes: int
) -> None:
    if status in (404, 410):
        raise missing(request.shown)
    if status in (401, 403):
        raise forbidden(request.shown)
    if status == 429 or status >= 500:
        raise unavailable(request.shown, f"its server answers {status}")
    if status != 200:
        raise Invalid(
            f"the server of {request.shown[:300]} answers {status}, and not 200 with the file",
            code="source_answer",
            param="source",
        )
    encoding = fields.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # Not decoded: a few bytes may become gigabytes, and masks are compressed already.
        raise Invalid(
            f"the server of {request.shown[:300]} sends it with Content-Encoding "
            f"{encoding[:40]!r}, although asked for none; serve the file as it is",
            code="source_answer",
            param="source",
        )
    length = fields.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise too_large(request.shown, max_bytes)


def _failed(request: WebRequest, file: WebFile, error: Exception) -> ApiError:
    """The error of a connection that failed. The log has the cause."""
    logger.info("Import of %s failed at %s: %r.", request.shown[:300], file.shown[:300], error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return unavailable(
                request.shown,
                f"the certificate of {file.host} is not trusted here (SSL_CERT_FILE names the "
                "operator's own authorities)",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore2.TimeoutException):
        return unavailable(request.shown, f"{file.host} does not answer in time")
    if isinstance(error, httpcore2.ProtocolError):
        return unavailable(request.shown, f"{file.host} ends or breaks off its answer")
    return unavailable(request.shown, f"{file.host} cannot be reached")
