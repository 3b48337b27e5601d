"""Completions by a server: many requests at a time, which end at once when the run does.

The requests run on an event loop of their own thread, so that a signal in the main thread cancels
them: their connections close, and the server stops generating.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bmt_client import AsyncBmtClient, BmtClientError

from bmt_trainer.methods.rollouts.outage import TookTooLong, Unanswered
from bmt_trainer.waiting import result_of

#: The fields of a completion request.
Fields = Mapping[str, Any]
#: An answer's JSON, or the error that took its place.
Answer = dict[str, Any] | Exception

# Refusals that are sent again within a request: the server lives, and has no place at present.
_NO_PLACE = (429, 503)
_WATCH_EVERY_S = 5.0
_UNREADY_S = 60.0
# Seconds without any answer after which refusals for lack of a place count as an outage.
_REFUSED_S = 30.0
_END_S = 5.0


class Generation:
    """Sends completion requests.

    client: whose own retries are off, and whose timeout is longer than `limit_s`; probe: asks if
    the server is ready; concurrency: requests at a time; limit_s: seconds that a request may take
    before it has hung.
    """

    def __init__(
        self, client: AsyncBmtClient, probe: AsyncBmtClient, *, concurrency: int, limit_s: float
    ) -> None:
        self._client, self._probe = client, probe
        self._concurrency, self._limit_s = concurrency, limit_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[Fields]) -> list[Answer]:
        """The answer to each request: its JSON, or a BmtClientError or Unanswered instead."""
        future = asyncio.run_coroutine_threadsafe(self._all(requests), self._loop)
        try:
            return result_of(future)
        except BaseException:
            future.cancel()  # a signal has ended the wait
            raise

    def close(self) -> None:
        """Cancel what runs, and end the thread."""

        async def end() -> None:
            mine = asyncio.current_task()
            running = [task for task in asyncio.all_tasks() if task is not mine]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._client.close()
            await self._probe.close()

        with suppress(TimeoutError):  # the thread is a daemon: it does not keep the process
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(_END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)

    async def _all(self, requests: Sequence[Fields]) -> list[Answer]:
        places, progress = asyncio.Semaphore(self._concurrency), _Progress()
        tasks = [asyncio.ensure_future(self._one(r, places, progress)) for r in requests]
        watch = asyncio.ensure_future(_until_unready(self._probe.ready))
        try:
            pending: set[asyncio.Future[Any]] = set(tasks)
            while pending and not watch.done():
                _, pending = await asyncio.wait(
                    {*pending, watch}, return_when=asyncio.FIRST_COMPLETED
                )
                pending.discard(watch)
        finally:
            for task in (watch, *tasks):
                task.cancel()
            await asyncio.gather(watch, *tasks, return_exceptions=True)
        return [_outcome(task) for task in tasks]

    async def _one(
        self, fields: Fields, places: asyncio.Semaphore, progress: _Progress
    ) -> dict[str, Any]:
        while True:
            async with places:
                try:
                    with progress.running():
                        async with asyncio.timeout(self._limit_s):
                            return await self._client.complete(fields)
                except TimeoutError:
                    raise TookTooLong(
                        f"no answer within {self._limit_s:g} s to a request for "
                        f"{fields['max_tokens']} tokens"
                    ) from None
                except BmtClientError as error:
                    wait_s = error.retry_after
                    refused = error.status in _NO_PLACE and wait_s is not None
                    if not refused or progress.idle_s() > _REFUSED_S:
                        raise
            await asyncio.sleep((wait_s or 1.0) * (1 + 0.25 * random.random()))


class _Progress:
    """Requests of a turn that the server works on."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._running, self._last = 0, self._clock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block waits for an answer."""
        self._running += 1
        try:
            yield
            self._last = self._clock()  # not after a refusal
        finally:
            self._running -= 1

    def idle_s(self) -> float:
        """Seconds since the last answer; 0 while others are waited for."""
        return 0.0 if self._running else self._clock() - self._last


async def _until_unready(ready: Callable[[], Awaitable[bool]]) -> None:
    """Return once the server has not been ready for a while."""
    loop = asyncio.get_running_loop()
    last = loop.time()
    while loop.time() - last < _UNREADY_S:
        await asyncio.sleep(_WATCH_EVERY_S)
        with suppress(BmtClientError):  # whatever it answers, it is not ready
            if await ready():
                last = loop.time()


def _outcome(task: asyncio.Task[dict[str, Any]]) -> Answer:
    if task.cancelled():
        return Unanswered(f"it has not been ready for {_UNREADY_S:g} s")
    error = task.exception()
    if isinstance(error, BmtClientError | Unanswered):
        return error
    return task.result()
