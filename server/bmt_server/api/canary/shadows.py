"""Copies of requests for the shadow of their alias, sent after the answer; theirs are dropped.

A copy runs in the background, when the answer that its client waits for is complete, so it neither
delays nor fails that. The engine has no lower priority for it: it is bounded instead. At most a few
sequences of copies run at a time in each API process, and none begins while requests take half of
the server's places; further copies are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from bmt_server.api.asgi import App, Message
from bmt_server.api.body.reader import replace_body
from bmt_server.api.body.turns import Turns
from bmt_server.api.canary.arm import Copy
from bmt_server.api.masks.resolver import Resolver
from bmt_server.api.metrics.versions import VersionMetrics
from bmt_server.api.response import event_stream
from bmt_server.api.response.refusals import watch
from bmt_server.api.usage.caller import Caller, attribute
from bmt_server.errors import ApiError
from bmt_server.registry.connection import end_task

logger = logging.getLogger("vllm.bmt_server")


class Shadows:
    """Copies that run in this process.

    most: sequences of copies at a time; 0: no copies are sent. busy: True while requests take so
    much of the server that no copy may begin.
    """

    def __init__(
        self,
        most: int,
        resolver: Resolver,
        metrics: VersionMetrics,
        turns: Turns,
        busy: Callable[[], bool],
    ) -> None:
        self._most = most
        self._resolver = resolver
        self._metrics = metrics
        self._turns = turns
        self._busy = busy
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self,
        app: App,
        scope: Message,
        body: Mapping[str, Any],
        copy: Copy,
        caller: Caller,
        sequences: int,
    ) -> None:
        """Send a copy of an answered request in the background, or drop it.

        scope, body: of the request as the app got it. sequences: that it runs in the engine.
        """
        if self._running + sequences > self._most or self._busy():
            self._metrics.dropped(copy.arm)
            return
        self._running += sequences
        task = asyncio.create_task(self._run(app, scope, body, copy, caller, sequences))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all copies."""
        for task in list(self._tasks):
            await end_task(task)

    async def _run(
        self,
        app: App,
        scope: Message,
        body: Mapping[str, Any],
        copy: Copy,
        caller: Caller,
        sequences: int,
    ) -> None:
        # The copy has the tenant's salt by the context of the request that it is a copy of.
        attribute(Caller(caller.key_id, caller.tenant, caller.mask, copy.arm))
        refusal = watch()
        answer, started = _Dropped(), time.monotonic()
        try:
            lease = self._resolver.hold(copy.version)
            try:
                await lease.ready()
                changed: dict[str, Any] = {**body, "model": lease.model}
                if isinstance(body.get("priority"), int):
                    changed["priority"] = max(0, body["priority"])
                headers = {"x-request-id": f"shadow-{secrets.token_hex(12)}"}
                kept = {**scope, "state": dict(scope.get("state", {}))}
                await app(*replace_body(kept, _never, changed, headers, self._turns), answer)
            finally:
                lease.release()
        except ApiError as error:
            answer.status = error.status
            logger.warning("A copy for the shadow %s failed: %s", copy.arm.version, error)
        except Exception:
            if refusal.error is None:
                logger.exception("A copy for the shadow %s failed.", copy.arm.version)
            answer.status = refusal.error.status if refusal.error is not None else 500
        finally:
            self._running -= sequences
        seconds = time.monotonic() - started
        self._metrics.answered(copy.arm, answer.status, seconds, failed=answer.failed)


class _Dropped:
    """`send` of an answer that no client reads. status: its own; failed: an event was an error."""

    def __init__(self) -> None:
        self.status = 500
        self.failed = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif event_stream.read_error(message.get("body", b"")) is not None:
            self.failed = True


async def _never() -> Message:
    """The client of a copy does not leave."""
    await asyncio.Event().wait()
    raise AssertionError
