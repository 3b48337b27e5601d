"""Retry policy and the flow of one request with its retries. No I/O; both clients share it.

Retried are 408, 429, 500, 502, 503, 504 and broken connections, because every request of this
client is idempotent (uploads are content-addressed). A 409 or 412 would fail again in the same
way, and other 4xx answers are errors of the request.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ._errors import BmtClientError, NotFound, Unavailable, UsageError
from ._transport import (
    Flow,
    NoAnswer,
    Request,
    Response,
    Send,
    Sleep,
    acknowledge,
    error_from_response,
    foreign,
)

log = logging.getLogger("bmt_client")

# With 5, one call in 10^6 fails if each attempt fails with a probability of 10 %.
DEFAULT_MAX_RETRIES = 5
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, unless the server states a wait."""

    max_retries: int = DEFAULT_MAX_RETRIES
    first_s: float = 0.2  # wait before the first retry, seconds; doubles each time
    longest_s: float = 8.0  # bound on the backoff, seconds
    longest_retry_after_s: float = 120.0  # longest stated wait that is followed, seconds
    jitter: float = 0.25  # random share of the wait, so that clients do not retry in step

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

        `response` is None without an answer. `uniform` returns a random number in [0, 1).
        """
        if retries_done >= self.max_retries:
            return None
        if response is not None and not self._retryable(response):
            return None
        stated = response.retry_after_s() if response is not None else None
        if stated is not None:
            return stated if stated <= self.longest_retry_after_s else None
        backoff = min(self.first_s * 2.0 ** min(retries_done, 30), self.longest_s)
        return backoff * (1.0 - self.jitter * uniform())

    @staticmethod
    def _retryable(response: Response) -> bool:
        # OpenAI's header that overrides the status; proxies in front of models send it.
        override = response.headers.get("x-should-retry")
        if override in ("true", "false"):
            return override == "true"
        return response.status in RETRIED_STATUSES


def exchange(request: Request, policy: RetryPolicy) -> Flow[Response]:
    """Send `request` until an answer arrives that is not retried.

    Returns an answer with status 2xx; its `attempts` counts the sends. Raises the typed error of
    any other answer, and `Unavailable` without one.
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
        retryable = request.retry and (lost is None or lost.retryable)
        wait = policy.wait_s(attempts - 1, response) if retryable else None
        if wait is None:
            failure = _failure(request, response, lost)
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


def remove(request: Request, policy: RetryPolicy) -> Flow[None]:
    """Send a request that removes something and answers 204. Raises as `exchange` does."""
    try:
        acknowledge((yield from exchange(request, policy)))
    except NotFound as error:
        # A second attempt does not find what the first one has removed.
        if error.attempts == 1 or error.code == "not_a_bmt_server":
            raise


def _failure(request: Request, response: Response | None, lost: NoAnswer | None) -> BmtClientError:
    if response is not None:
        return foreign(response, request) or error_from_response(response)
    return Unavailable(str(lost), code=lost.code if lost else None)
