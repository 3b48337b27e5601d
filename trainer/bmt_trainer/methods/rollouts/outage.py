"""Errors of a server in the trainer's words, and waiting for one that is gone.

A server that restarts refuses connections, breaks those that are open and answers 503 with
Retry-After: requests that fail so are sent again. Everything else ends the run in one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bmt_client import AuthenticationError, BmtClientError, PermissionDenied

from bmt_trainer.errors import RolloutError

T = TypeVar("T")

_KEY = (
    "set BMT_API_KEY to a key with the scopes infer and upload "
    "(bmt-server keys create --scope infer --scope upload)"
)
# Pauses between attempts, seconds; the last one repeats.
_PAUSES_S = (1.0, 2.0, 3.0, 5.0)


class Unanswered(Exception):
    """A request that ended without a whole answer."""


class TookTooLong(Unanswered):
    """A request beyond the time that its tokens may take."""


def is_passing(error: BaseException) -> bool:
    """True if the same request may succeed once the server is back."""
    return error.retryable if isinstance(error, BmtClientError) else isinstance(error, Unanswered)


def words(error: BaseException) -> str:
    """An error of a request in one line."""
    return " ".join(str(error).split())[:400]


def refusal(url: str, error: BaseException) -> RolloutError:
    """The error that ends the run, of one that no later attempt mends."""
    if isinstance(error, AuthenticationError):
        return RolloutError(f"server {url} refuses the key: {words(error)}; {_KEY}")
    if isinstance(error, PermissionDenied):
        return RolloutError(f"server {url} does not let the key do this: {words(error)}; {_KEY}")
    return RolloutError(f"server {url}: {words(error)}")


class Outage:
    """The time that one step of a run waits for its server, from the first failure on.

    wait_s: after which it gives up, seconds; say: shows a line.
    """

    def __init__(self, url: str, wait_s: float, say: Callable[[str], None]) -> None:
        self._url, self._wait_s, self._say = url, wait_s, say
        self._since: float | None = None
        self._pauses = 0

    def pause(self, error: BaseException) -> None:
        """Wait before the next attempt. Raises RolloutError once the time is over."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if self._wait_s:
                self._say(
                    f"server {self._url} is away ({words(error)}); waiting for it up to "
                    f"{self._wait_s / 60:g} minutes (--server-wait)"
                )
        left = self._since + self._wait_s - now
        if left <= 0:
            raise RolloutError(
                f"server {self._url} has not come back within {self._wait_s / 60:g} minutes "
                f"({words(error)}); start it again, or raise --server-wait, then go on with "
                "--resume"
            ) from error
        usual = _PAUSES_S[min(self._pauses, len(_PAUSES_S) - 1)]
        self._pauses += 1
        asked = error.retry_after if isinstance(error, BmtClientError) else None
        time.sleep(min(max(usual, asked or 0.0), left))

    def over(self) -> None:
        """Say that the server answers again, if it had not."""
        if self._since is not None:
            self._say(f"server {self._url} is back after {time.monotonic() - self._since:.0f} s")
            self._since, self._pauses = None, 0
