"""Connection to Redis or Valkey: bounded call times and a circuit breaker.

redis-py retries ten times with pauses by default: a closed port costs seconds, and a hung server a
minute. Here a call takes at most about one second, and after three failures calls are refused at
once for a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from bmt_server.errors import RegistryDown, RegistryFull

T = TypeVar("T")

_TIMEOUT_S = 0.5
_BULK_TIMEOUT_S = 10.0  # blobs are megabytes
# Bounds on a whole call, because socket timeouts add up over a retry and a reconnect's handshake.
QUICK_S, BULK_S = 1.0, 30.0
_FAILURES_TO_OPEN = 3
_OPEN_S = 1.0


class RegistryConnection:
    """Two connection pools, `quick` for small commands and `bulk` for blobs, and one breaker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.quick = _client(url, _TIMEOUT_S)
        self.bulk = _client(url, _BULK_TIMEOUT_S)
        self.up = True
        self._failures = 0
        self._open_until = 0.0

    async def call(self, command: Callable[[], Awaitable[T]], within_s: float = QUICK_S) -> T:
        """Run one command within `within_s` seconds, including its retry and a reconnect.

        Raises RegistryDown, RegistryFull, and ResponseError of a script.
        """
        if time.monotonic() < self._open_until:
            raise RegistryDown("the mask registry does not answer; try again shortly")
        try:
            async with asyncio.timeout(within_s):
                result = await command()
        except OutOfMemoryError:
            raise RegistryFull("the mask registry is full; delete versions or add memory") from None
        except ResponseError:
            raise
        except (TimeoutError, RedisError, OSError) as error:
            self._count_failure()
            raise RegistryDown(f"the mask registry does not answer ({error})") from None
        self._failures, self.up, self._open_until = 0, True, 0.0
        return result

    def _count_failure(self) -> None:
        self.up = False
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN:
            self._open_until = time.monotonic() + _OPEN_S

    async def close(self) -> None:
        await self.quick.aclose()
        await self.bulk.aclose()


def _client(url: str, timeout: float) -> Any:
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, _TIMEOUT_S),
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 1),
        health_check_interval=5,
    )


def blocking_client(url: str, block_s: float) -> Any:
    """Client for blocking reads of up to `block_s` seconds each."""
    return redis.Redis.from_url(
        url,
        socket_timeout=block_s + _TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 0),
    )
