"""Errors of `httpx2` as `NoAnswer`, with the address and the proxy or certificate at fault."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bmt_client._config import Target
from bmt_client._transport import NoAnswer

from .trust import proxy_variable, trust_source

if TYPE_CHECKING:
    import httpx2


def no_answer(
    target: Target, error: httpx2.RequestError, silence_s: float | None = None
) -> NoAnswer:
    """Describe an error of the connection to `target`.

    silence_s: longest wait for a part of the answer, seconds; default: the target's timeout.
    """
    import httpx2

    url = target.url
    if found := _tls(target, error):
        return found
    through = f" through {proxy}" if (proxy := proxy_variable(target)) else ""
    if isinstance(error, httpx2.ProxyError):
        message = f"the proxy of {proxy or 'the environment'} refused {url}: {_reason(error)}"
        # A proxy that cannot reach the server answers 502 to 504, which may pass.
        passing = re.search(r"\b50[234]\b", str(error)) is not None
        return NoAnswer(message, code="proxy", retryable=passing)
    if isinstance(error, httpx2.ConnectTimeout):
        return NoAnswer(f"cannot connect to {url}{through} in time", code="timeout")
    if isinstance(error, httpx2.TimeoutException):
        seconds = silence_s or target.timeout_s
        return NoAnswer(f"{url} did not answer within {seconds:g} s", code="timeout")
    if isinstance(error, httpx2.ConnectError):
        return NoAnswer(f"cannot connect to {url}{through}: {_reason(error)}", code="connection")
    reason = _reason(error)
    return NoAnswer(f"the connection to {url}{through} broke: {reason}", code="connection")


def _tls(target: Target, error: BaseException) -> NoAnswer | None:
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            message = (
                f"{target.url} has a certificate that is not trusted: {cause.verify_message} "
                f"(trusted: {trust_source(target)})"
            )
            return NoAnswer(message, code="certificate", retryable=False)
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            message = f"{target.url} does not answer in TLS; is its address http://?"
            return NoAnswer(message, code="tls", retryable=False)
        cause = cause.__cause__ or cause.__context__
    return None


def _reason(error: Exception) -> str:
    """Text of an OS error without its number: `connection refused`."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).lower() or type(error).__name__
