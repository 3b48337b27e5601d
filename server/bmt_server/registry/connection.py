"""Connection to Redis or Valkey: bounded call times, a circuit breaker, and failovers.

redis-py retries ten times with pauses by default: a closed port costs seconds, and a hung server a
minute. Here a call takes at most about one second, and after three failures calls are refused at
once for a second. Calls beyond the number of connections wait for one; they are no failure of the
registry, and open no breaker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from bmt_server.errors import ApiError, RegistryDown, RegistryFull, Unavailable
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.registry.primary import Primary, client, drop_connections

T = TypeVar("T")

logger = logging.getLogger("vllm.bmt_server")

_TIMEOUT_S = 0.5
_BULK_TIMEOUT_S = 10.0  # blobs are megabytes
# Bounds on a whole call, because socket timeouts add up over a retry and a reconnect's handshake.
QUICK_S, BULK_S = 1.0, 30.0
# Connections of each of the two pools, and the longest wait for one of them.
CONNECTIONS = 32
_WAIT_S = 5.0
_FAILURES_TO_OPEN = 3
_OPEN_S = 1.0
_CANCEL_S = 0.2
# Time without an answer from which on whoever needs the registry may have lost what it held there.
_OUTAGE_S = 3.0

# Ends of MISCONF's text when an append-only file cannot grow, as the C library words them.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
# Errors without a class in redis-py, by their first word. Nothing was written.
_NOT_NOW = {
    "MISCONF": "cannot write to its disk",
    "LOADING": "is loading its data",
    "BUSY": "is busy with a script",
    "MASTERDOWN": "has lost its primary",
    "CLUSTERDOWN": "is a cluster that lacks nodes",
    "UNBLOCKED": "has changed its role",
}


class RegistryConnection:
    """Two connection pools, `quick` for small commands and `bulk` for blobs, and one breaker.

    Raises ValueError for a URL that is none of a registry.
    """

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        self.url = url
        self.address = RegistryAddress.parse(url)
        self._primary = Primary(self.address)
        self.quick = client(self._primary, connections, _TIMEOUT_S, _WAIT_S, 1)
        self.bulk = client(self._primary, connections, _BULK_TIMEOUT_S, _WAIT_S, 1)
        # One place per connection. Waiting for a place is apart from the time of a call, so a busy
        # process is not taken for a registry that does not answer.
        self._quick_places = asyncio.Semaphore(connections)
        self._bulk_places = asyncio.Semaphore(connections)
        self.up = True
        self._up_since, self._down_since = time.monotonic(), 0.0
        self._failures = 0
        self._open_until = 0.0

    def blocking_client(self, block_s: float) -> Any:
        """Client for blocking reads of up to `block_s` seconds each, from the same primary."""
        return client(self._primary, 1, block_s + _TIMEOUT_S, _WAIT_S, 0)

    async def call(self, command: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        """Run one command within `within_s` (QUICK_S) seconds, its retry and a reconnect included.

        A command that the node refuses because another one is the primary is run again, once, on
        that one. Raises RegistryDown, RegistryFull, Unavailable, and ResponseError of a script.
        """
        self._check_breaker()
        within_s = QUICK_S if within_s is None else within_s
        places = self._quick_places if within_s <= QUICK_S else self._bulk_places
        try:
            async with asyncio.timeout(_WAIT_S):
                await places.acquire()
        except TimeoutError:
            raise Unavailable(
                "the server has too many reads of its registry in progress; try again shortly",
                code="registry_busy",
                retry_after=1,
            ) from None
        try:
            self._check_breaker()
            try:
                return await self._run(command, within_s)
            except (MovedError, ReadOnlyError):
                return await self._run(command, within_s, last=True)
        finally:
            places.release()

    def _check_breaker(self) -> None:
        if time.monotonic() < self._open_until:
            raise RegistryDown("the mask registry does not answer; try again shortly")

    async def _run(
        self, command: Callable[[], Awaitable[T]], within_s: float, *, last: bool = False
    ) -> T:
        try:
            async with asyncio.timeout(within_s):
                result = await command()
        except OutOfMemoryError:
            raise RegistryFull("the mask registry is full; delete versions or add memory") from None
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise RegistryDown(
                "the mask registry refuses this server's user or password",
                code="registry_refused",
                detail=str(error),
            ) from None
        except ResponseError as error:
            await self._follow(error)
            if isinstance(error, MovedError | ReadOnlyError) and not last:
                raise
            if (refusal := _refusal(error)) is None:
                raise
            raise refusal from None
        except (TimeoutError, RedisError, OSError) as error:
            self._count_failure()
            raise RegistryDown(
                "the mask registry does not answer; try again shortly",
                detail=str(error) or type(error).__name__,
            ) from None
        if not self.up and time.monotonic() - self._down_since > _OUTAGE_S:
            self._up_since = time.monotonic()
        self._failures, self.up, self._open_until = 0, True, 0.0
        return result

    async def _follow(self, error: ResponseError) -> None:
        """Leave the node if it is not the primary."""
        if isinstance(error, MovedError):
            self._primary.moved(error.host, error.port)
        elif isinstance(error, ReadOnlyError | ClusterDownError) or _word(error) == "UNBLOCKED":
            self._primary.forget()
        else:
            return
        await self.drop()

    async def drop(self) -> None:
        """Close all connections; the next ones ask for the primary again."""
        for pool in (self.quick, self.bulk):
            await drop_connections(pool)

    def leave(self) -> None:
        """Forget the primary: the node in use turned out not to be it."""
        self._primary.forget()

    @property
    def up_for_s(self) -> float:
        """Seconds for which the registry has answered this process, but for short failures."""
        return time.monotonic() - self._up_since

    def _count_failure(self) -> None:
        if self.up:
            self._down_since = time.monotonic()
        self.up = False
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN:
            self._open_until = time.monotonic() + _OPEN_S

    async def close(self) -> None:
        await self.quick.aclose()
        await self.bulk.aclose()
        await self._primary.close()


def _word(error: ResponseError) -> str:
    return str(error).partition(" ")[0]


def _refusal(error: ResponseError) -> ApiError | None:
    """The response to an error that goes away by itself; None for any other error."""
    if _word(error) == "NOREPLICAS":
        return Unavailable(
            "the mask registry has too few replicas for a write; try again shortly",
            code="not_durable",
        )
    if _word(error) == "MISCONF" and any(text in str(error) for text in _DISK_FULL):
        return RegistryFull(
            "the mask registry's disk is full, and it takes no change until there is room: enlarge "
            "the disk, or free some of it",
            retry_after=10,
        )
    why = _NOT_NOW.get(_word(error))
    if isinstance(error, ReadOnlyError | MovedError | AskError | TryAgainError):
        why = "has moved to another node"
    elif isinstance(error, ClusterDownError):
        why = _NOT_NOW["CLUSTERDOWN"]
    if why is None:
        return None
    return RegistryDown(f"the mask registry {why}; try again shortly", detail=str(error))


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task that uses Redis, and wait until it has ended.

    redis-py swallows a cancellation that arrives together with a reply, and the task continues. So
    cancel until it ends.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_S)
    if task is not None and not task.cancelled():
        task.exception()  # read, because no call waits for it any more
