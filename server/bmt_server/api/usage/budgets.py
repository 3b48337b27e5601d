"""Rates and budgets of keys and tenants over all replicas, by the `limits` library on the registry.

Requests per minute are counted before a request, by a sliding window: the limit holds over all
processes. Tokens are known after a request. Their windows begin with the first token of a minute,
a day or 30 days, a request is refused when nothing is left, and what it took is added at its end;
meanwhile this process holds back what its running requests may take at most. So a budget is
exceeded by at most one request of each API process.

A key without limits costs no round trip. While the registry does not answer, requests are served
without these limits, or refused, by the setting; limits of a process (`api/admission.py`) go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple

from limits import (
    RateLimitItem,
    RateLimitItemPerDay,
    RateLimitItemPerMinute,
    RateLimitItemPerMonth,
)
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from bmt_server.errors import ApiError, RateLimited, Unavailable
from bmt_server.registry.connection import RegistryConnection, end_task
from bmt_server.registry.usage.charges import Charges
from bmt_server.registry.usage.limits import BUDGETS, Kind, LimitStore
from bmt_server.registry.usage.windows import WindowStorage

logger = logging.getLogger("vllm.bmt_server")

Headers = list[tuple[bytes, bytes]]
_CALL_S = 0.25
_AWAY_S = 2.0
_MAX_WINDOWS = 10_000
# Longer waits are no matter of a retry.
_RETRIED_S = 60
_REQUESTS = BUDGETS[0]
_ITEMS: dict[str, type[RateLimitItem]] = {
    "requests_per_minute": RateLimitItemPerMinute,
    "tokens_per_minute": RateLimitItemPerMinute,
    "tokens_per_day": RateLimitItemPerDay,
    "tokens_per_month": RateLimitItemPerMonth,
}


class Window(NamedTuple):
    """One limit of a key or a tenant. field: of `Limits`."""

    kind: Kind
    name: str
    field: str
    amount: int

    @property
    def counted(self) -> tuple[RateLimitItem, str, str, str]:
        """The library's limit, and the names that it counts under."""
        return _item(self.field, self.amount), self.kind, self.name, self.field.partition("_")[0]

    @property
    def text(self) -> str:
        what, _, span = self.field.partition("_per_")
        return f"{self.amount} {what} per {span}"


@lru_cache(maxsize=1024)
def _item(field: str, amount: int) -> RateLimitItem:
    return _ITEMS[field](amount)


class Budgets:
    """Limits of requests, enforced from `start` to `close`.

    refuse: refuse requests with limits while the registry is away. on_enforced: called with 1 when
    limits are enforced, and with 0 when they cannot be.
    """

    def __init__(
        self,
        connection: RegistryConnection,
        limits: LimitStore,
        *,
        refuse: bool = False,
        on_enforced: Callable[[int], None] = lambda enforced: None,
    ) -> None:
        self._connection, self._limits = connection, limits
        self._refuse, self._on_enforced = refuse, on_enforced
        storage = WindowStorage(connection)
        self._requests = SlidingWindowCounterRateLimiter(storage)
        self._tokens = FixedWindowRateLimiter(storage)
        self._charges = Charges(connection)
        self._windows: dict[tuple[str, str], tuple[Window, ...]] = {}
        self._reserved: dict[Window, int] = {}
        # Tokens that the registry has not counted yet, and those that it has since the start.
        self._pending: dict[Window, int] = {}
        self._charged: dict[Window, int] = {}
        # The charge that the registry has not confirmed: window and tokens.
        self._sending: tuple[Window, int] | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away_until = 0.0
        self._away = False
        limits.on_change = self._windows.clear
        on_enforced(1)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bmt-budgets")

    async def close(self) -> None:
        """Count what is left, if the registry answers, and stop."""
        task, self._task = self._task, None
        await end_task(task)
        await self._attempt()

    async def admit(
        self, key_id: str, tenant: str, headers: Headers, *, engine: bool
    ) -> Admission | None:
        """Count a request; None without limits. headers: receives `x-ratelimit-…`, also if refused.

        engine: the request takes tokens. Raises RateLimited, and Unavailable by the setting.
        """
        windows = self._of(key_id, tenant)
        if not windows:
            return None
        requests = [w for w in windows if w.field == _REQUESTS]
        tokens = [w for w in windows if w.field != _REQUESTS] if engine else []
        charged = {w: self._charged.get(w, 0) for w in tokens}
        try:
            if time.monotonic() < self._away_until:
                raise Unavailable("the registry did not answer a moment ago")
            hits = [False] * len(requests)
            # The key's before its tenant's: what a key is refused is nothing that its tenant used.
            for at, window in enumerate(requests):
                hits[at] = await self._ask(self._requests.hit, window)
                if not hits[at]:
                    break
            stats = await asyncio.gather(
                *(self._ask(self._requests.get_window_stats, w) for w in requests),
                *(self._ask(self._tokens.get_window_stats, w) for w in tokens),
            )
        except (ApiError, RedisError) as error:
            self._note_away(error)
            if self._refuse:
                raise Unavailable(
                    "the limits of this key cannot be checked: the mask registry does not answer; "
                    "try again shortly",
                    code="budgets_unavailable",
                ) from None
            return None
        self._note_back()
        now = time.time()
        waits = {w: s.reset_time - now for w, s in zip([*requests, *tokens], stats, strict=True)}
        left = {w: s.remaining for w, s in zip([*requests, *tokens], stats, strict=True)}
        admission = Admission(self, {w: left[w] for w in tokens}, charged, waits, headers)
        _add_headers(headers, "requests", {w: left[w] for w in requests}, waits)
        _add_headers(headers, "tokens", {w: admission.left(w) for w in tokens}, waits)
        for window, counted in zip(requests, hits, strict=True):
            if not counted:
                raise _refusal(window, waits[window], headers)
        admission.check()
        return admission

    def charge(self, key_id: str, tenant: str, tokens: int) -> None:
        """Count the tokens of an engine call, in the background."""
        for window in self._of(key_id, tenant):
            if window.field != _REQUESTS and tokens:
                self._pending[window] = self._pending.get(window, 0) + tokens
                self._wake.set()

    def _of(self, key_id: str, tenant: str) -> tuple[Window, ...]:
        windows = self._windows.get((key_id, tenant))
        if windows is None:
            if len(self._windows) >= _MAX_WINDOWS:
                self._windows.clear()
            named: tuple[tuple[Kind, str], ...] = (("key", key_id), ("tenant", tenant))
            windows = self._windows[key_id, tenant] = tuple(
                Window(kind, name, field, amount)
                for kind, name in named
                for field in BUDGETS
                if (amount := getattr(self._limits.of(kind, name), field))
            )
        return windows

    async def _ask(self, question: Callable[..., Awaitable[Any]], w: Window) -> Any:
        return await self._connection.call(lambda: question(*w.counted), _CALL_S)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self._attempt():
                await asyncio.sleep(_AWAY_S)
                self._wake.set()

    async def _attempt(self) -> bool:
        """Add pending tokens to the registry's windows; False if it does not answer."""
        while self._sending or self._pending:
            if self._sending is None:
                self._charges.begin()
                self._sending = next(iter(self._pending.items()))
            window, tokens = self._sending
            item, *names = window.counted
            try:
                await self._charges.send(item, tuple(names), tokens, _CALL_S)
            except (ApiError, RedisError) as error:
                self._note_away(error)
                return False
            self._sending = None
            self._note_back()
            if len(self._charged) >= _MAX_WINDOWS:
                self._charged = {w: n for w, n in self._charged.items() if w in self._reserved}
            self._charged[window] = self._charged.get(window, 0) + tokens
            self._pending[window] -= tokens
            if not self._pending[window]:
                del self._pending[window]
        return True

    def _note_away(self, error: Exception) -> None:
        if time.monotonic() >= self._away_until:
            self._away_until = time.monotonic() + _AWAY_S
        if not self._away:
            so = "requests with limits are refused" if self._refuse else "requests are served"
            logger.warning(
                "Limits of keys and tenants over all replicas are not enforced (%s); %s, within "
                "the limits of this process.",
                getattr(error, "detail", "") or error,
                so,
            )
            self._on_enforced(0)
        self._away = True

    def _note_back(self) -> None:
        if self._away:
            logger.info("Limits of keys and tenants are enforced again.")
            self._on_enforced(1)
        self._away = False


class Admission:
    """One admitted request: what was left of its windows, and what it holds back of them."""

    def __init__(
        self,
        budgets: Budgets,
        remaining: dict[Window, int],
        charged: dict[Window, int],
        waits: dict[Window, float],
        headers: Headers,
    ) -> None:
        self._budgets, self._remaining = budgets, remaining
        self._charged, self._waits, self._headers = charged, waits, headers
        self._held = 0

    def left(self, window: Window) -> int:
        """Tokens that a further request may begin with."""
        of = self._budgets
        since = of._charged.get(window, 0) - self._charged[window]
        taken = since + of._pending.get(window, 0) + of._reserved.get(window, 0)
        return self._remaining[window] - taken

    def check(self) -> None:
        """Raise RateLimited if nothing is left of a window."""
        for window in self._remaining:
            if self.left(window) > 0:
                continue
            if self._remaining[window] > 0:
                raise RateLimited(
                    f"the running requests of this {window.kind} may take the rest of its "
                    f"{window.text}; wait for one to end, or send a smaller `max_tokens`",
                    code="rate_limit_exceeded",
                )
            raise _refusal(window, self._waits[window], self._headers)

    def reserve(self, tokens: int) -> None:
        """Hold back the most that the request may take. Raises RateLimited if nothing is left."""
        self.check()
        self._held = tokens
        for window in self._remaining:
            reserved = self._budgets._reserved
            reserved[window] = reserved.get(window, 0) + tokens

    def release(self) -> None:
        """End the hold, once the request has ended."""
        held, self._held = self._held, 0
        reserved = self._budgets._reserved
        for window in self._remaining if held else ():
            reserved[window] -= held
            if not reserved[window]:
                del reserved[window]


def _add_headers(
    headers: Headers, what: str, left: dict[Window, int], waits: dict[Window, float]
) -> None:
    """Headers of the window that is used up first, in OpenAI's form."""
    if not left:
        return
    window = min(left, key=lambda w: (left[w], -waits[w]))
    for name, value in (
        ("limit", str(window.amount)),
        ("remaining", str(max(0, left[window]))),
        ("reset", duration(waits[window])),
    ):
        headers.append((f"x-ratelimit-{name}-{what}".encode(), value.encode()))


def duration(seconds: float) -> str:
    """A time as OpenAI writes it: `1s`, `6m0s`, `23h59m1s`."""
    whole = max(0, math.ceil(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    text = f"{hours}h" if hours else ""
    return f"{text}{minutes}m{whole % 60}s" if whole >= 60 else f"{whole}s"


def _refusal(window: Window, wait_s: float, headers: Headers) -> RateLimited:
    wait = max(1, math.ceil(wait_s))
    minute = window.field.endswith("minute")
    if wait > _RETRIED_S:
        headers.append((b"x-should-retry", b"false"))
    return RateLimited(
        f"this {window.kind} may use {window.text}, over all servers, and has used them; retry in "
        f"{duration(wait)}",
        code="rate_limit_exceeded" if minute else "budget_exceeded",
        retry_after=wait,
    )
