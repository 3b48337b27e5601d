"""When a failed exchange is tried again, and after how long. No I/O: both clients share it.

408, 429, 500, 502, 503, 504 and connections that broke are tried again: every request of this
client is idempotent (uploads are content-addressed). Nothing else is: a 409 or 412 would only
lose the same race again, and other 4xx are ours to fix.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ._errors import BmtClientError, Unavailable, UsageError
from ._wire import Flow, NoAnswer, Request, Response, Send, Sleep, error_from_response

log = logging.getLogger("bmt_client")

# With 5, one call in 10^6 fails where each attempt has a 10 % chance to.
DEFAULT_MAX_RETRIES = 5
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, unless the server says how long to wait."""

    max_retries: int = DEFAULT_MAX_RETRIES
    first_s: float = 0.2  # wait before the first retry, seconds; doubles each time
    longest_s: float = 8.0  # bound on a wait of our own choice, seconds
    longest_retry_after_s: float = 120.0  # a server that asks for more is not waited for, seconds
    jitter: float = 0.25  # share of the wait that is random, so that clients do not march in step

    def __post_init__(self) -> None:
        if not isinstance(self.max_retries, int) or not 0 <= self.max_retries <= 1000:
            raise UsageError(f"max_retries is {self.max_retries!r}; it must be 0 to 1000")

    def wait_s(
        self,
        retries_done: int,
        response: Response | None,
        uniform: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        `response` is None where no answer came. `uniform` gives a random number in [0, 1).
        """
        if retries_done >= self.max_retries:
            return None
        if response is not None and not self._worth_another(response):
            return None
        asked = response.retry_after_s() if response is not None else None
        if asked is not None:
            return asked if asked <= self.longest_retry_after_s else None
        own = min(self.first_s * 2.0 ** min(retries_done, 30), self.longest_s)
        return own * (1.0 - self.jitter * uniform())

    @staticmethod
    def _worth_another(response: Response) -> bool:
        # The header is OpenAI's way to overrule the status; proxies in front of models send it.
        said = response.headers.get("x-should-retry")
        if said in ("true", "false"):
            return said == "true"
        return response.status in RETRIED_STATUSES


def exchange(request: Request, policy: RetryPolicy) -> Flow[Response]:
    """Send `request` until an answer comes that is worth no other attempt.

    Returns an answer with status 2xx; its `attempts` counts the sends. Raises the typed error of
    any other answer, `Unavailable` where none came.
    """
    attempts = 0
    while True:
        attempts += 1
        response: Response | None = None
        lost: NoAnswer | None = None
        try:
            response = yield Send(request)
        except NoAnswer as error:
            lost = error
        if response is not None and 200 <= response.status < 300:
            return replace(response, attempts=attempts)
        may = request.retry and (lost is None or lost.retryable)
        wait = policy.wait_s(attempts - 1, response) if may else None
        if wait is None:
            failure = _failure(response, lost)
            failure.attempts = attempts
            raise failure
        log.info(
            "%s; retry %d of %d in %.1f s",
            lost or f"the server answered {response.status if response else None}",
            attempts,
            policy.max_retries,
            wait,
        )
        yield Sleep(wait)


def _failure(response: Response | None, lost: NoAnswer | None) -> BmtClientError:
    if response is not None:
        return error_from_response(response)
    return Unavailable(str(lost), code=lost.code if lost else None)
