"""A run's connection to its server: checked at the start, waited for when it is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bmt_client import AsyncBmtClient, BmtClient, BmtClientError, KeyInfo, UsageError

from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.methods.rollouts.checks import Requirements, stated_by
from bmt_trainer.methods.rollouts.generation import Generation
from bmt_trainer.methods.rollouts.outage import Outage, is_passing, refusal, words
from bmt_trainer.process import world_size

T = TypeVar("T")

# Seconds for an upload, and for a question that is answered at once.
_UPLOAD_S, _PROBE_S = 30.0, 10.0
# A server that refuses connections at the start of a run is asked again for this long.
_FIRST_S = 6.0
# Concurrent requests; each is for all completions of one prompt.
_CONCURRENCY = 64


class Connection:
    """Clients of one server, and its limits as of the last check.

    required: the run's needs, compared in `open` and after each outage; wait_s: seconds to wait
    for a server that is away; limit_s: seconds that a request for completions may take; say: shows
    a line. Raises ConfigError for a URL or a key that cannot be used.
    """

    def __init__(
        self,
        url: str,
        required: Requirements,
        *,
        wait_s: float,
        limit_s: float,
        say: Callable[[str], None],
    ) -> None:
        try:
            self.registry = BmtClient(url, timeout=_UPLOAD_S, max_retries=1)
            self._probe = BmtClient(url, timeout=_PROBE_S, max_retries=0)
            self._asks = AsyncBmtClient(url, timeout=2 * limit_s, max_retries=0)
            self._watches = AsyncBmtClient(url, timeout=_PROBE_S, max_retries=0)
        except UsageError as error:
            raise ConfigError(f"server: {_without_flags(error)}") from error
        self.url, self.say = self.registry.base_url, say
        self.limits = KeyInfo(scopes=frozenset())
        self._required, self._wait_s, self._limit_s = required, wait_s, limit_s

    def reopen(self) -> None:
        """Compare the server again, and wait for one that is away. Raises RolloutError."""
        self.call(self._compare)

    def open(self) -> None:
        """Reach the server and compare it with the run's needs. Raises RolloutError.

        One that starts is waited for; one that does not answer at all is given up in seconds.
        """
        started = time.monotonic()
        while True:
            try:
                self._compare()
                return
            except BmtClientError as error:
                if not is_passing(error):
                    raise refusal(self.url, error) from error
                # One that is starting says so; a hung one has taken its time already.
                if error.status is None and time.monotonic() - started > _FIRST_S:
                    raise RolloutError(
                        f"server: {words(error)}; start it, or correct --server"
                    ) from error
                failed = error
            if failed.status is None:
                time.sleep(1.0)
            else:
                self.call(self._compare, after=failed)
                return

    def _compare(self) -> None:
        limits = stated_by(self._probe, self.say if not self.limits.scopes else _silent)
        self._required.check(self.url, limits)
        self.limits = limits

    def generation(self) -> Generation:
        """Sends requests for completions, as many at a time as the key may have."""
        most = min(_CONCURRENCY, self.limits.key_concurrency or _CONCURRENCY)
        most = max(1, most // world_size())  # the processes of a run share its key
        return Generation(self._asks, self._watches, concurrency=most, limit_s=self._limit_s)

    def outage(self) -> Outage:
        """Waiting of one step of the run."""
        return Outage(self.url, self._wait_s, self.say)

    def call(
        self,
        work: Callable[[], T],
        *,
        after: BaseException | None = None,
        outage: Outage | None = None,
    ) -> T:
        """Do `work` on the server, and wait for one that is away.

        After a pause the server's base and limits are compared again. after: the error of an
        earlier attempt; outage: whose time it takes, and which the caller ends. Raises
        RolloutError.
        """
        waiting, failed = outage or self.outage(), after
        while True:
            try:
                if failed is not None:
                    waiting.pause(failed)
                    self._compare()
                value = work()
            except BmtClientError as error:
                if not is_passing(error):
                    raise refusal(self.url, error) from error
                failed = error
                continue
            if outage is None:
                waiting.over()
            return value

    def close(self) -> None:
        """Close the connections."""
        self.registry.close()
        self._probe.close()


def _without_flags(error: UsageError) -> str:
    if error.code != "insecure_url":
        return str(error)
    return (
        "BMT_API_KEY would go to another machine unencrypted; use https://, or a tunnel to a port "
        "of this machine (ssh -L)"
    )


def _silent(text: str) -> None:
    """Show nothing."""
