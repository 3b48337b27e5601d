"""Writes that are acknowledged when they cannot be lost: on the primary's disk and on replicas.

A script and the commands that wait for it run on one connection, in one pipeline: WAITAOF and WAIT
wait for the writes of their own connection alone, and a second connection may lead to another node
after a failover. For the same reason each script writes at least `{bmt}:written` when it succeeds,
so that a repeated request, which changes nothing, waits for the first one's write.

A failover may lose writes that the new primary has not received. `replicas` is the number of
replicas that have a write before it is acknowledged; 0 waits for the primary's own disk only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from bmt_server.errors import Unavailable
from bmt_server.registry.connection import QUICK_S, RegistryConnection
from bmt_server.registry.server_state import CONFIRMS_DISK, ServerState

logger = logging.getLogger("vllm.bmt_server")

CONFIRM_MS = 2000


class Durability:
    """Scripts with a confirmation. replicas: number of replicas that must have each write."""

    def __init__(self, connection: RegistryConnection, replicas: int = 0) -> None:
        self._connection = connection
        self._replicas = replicas
        # Unknown at first: then WAITAOF is tried, and its error decides.
        self._disk = True
        self._replica_disks = True

    def learn(self, state: ServerState) -> None:
        """Take over the server's state, after each reconnect."""
        supported = state.version is None or state.version >= CONFIRMS_DISK
        self._disk = supported and state.appends is not False
        self._replica_disks = True

    async def run(
        self, source: str, keys: Sequence[str], args: Sequence[str | bytes]
    ) -> tuple[list[Any], Any]:
        """Run a script. Returns its reply, and replies that `check` judges if it wrote."""
        waits = self._waits()

        async def send() -> list[Any]:
            async with self._connection.bulk.pipeline(transaction=False) as pipe:
                pipe.eval(source, len(keys), *keys, *args)
                for wait in waits:
                    pipe.execute_command(*wait)
                replies: list[Any] = await pipe.execute(raise_on_error=False)
            if isinstance(replies[0], Exception):
                raise replies[0]
            return replies

        within_s = QUICK_S + len(waits) * CONFIRM_MS / 1000
        reply, *confirmed = await self._connection.call(send, max(within_s, QUICK_S + 0.001))
        return reply, dict(zip((wait[0] for wait in waits), confirmed, strict=True))

    def _waits(self) -> list[tuple[Any, ...]]:
        wanted = self._replicas
        waits: list[tuple[Any, ...]] = []
        if self._disk:
            waits.append(("WAITAOF", 1, wanted if self._replica_disks else 0, CONFIRM_MS))
        if wanted:
            waits.append(("WAIT", wanted, CONFIRM_MS))
        return waits

    def check(self, confirmed: dict[str, Any]) -> None:
        """Judge the replies to a write. Raises Unavailable (`not_durable`)."""
        disk = confirmed.get("WAITAOF")
        if isinstance(disk, ResponseError):
            logger.warning(
                "The mask registry cannot confirm writes on its disk (%s); uploads are "
                "acknowledged without.",
                disk,
            )
            self._disk = False
        elif isinstance(disk, Exception):
            raise disk
        elif disk is not None:
            if not disk[0]:
                raise _not_durable("its disk did not confirm the write")
            if disk[1] >= self._replicas:
                return
        received = confirmed.get("WAIT", 0)
        if isinstance(received, Exception):
            raise _not_durable("its user may not wait for replicas; grant +wait and +waitaof")
        if received < self._replicas:
            raise _not_durable(f"{received} of {self._replicas} replicas have the write")
        if self._replicas and self._disk and self._replica_disks:
            logger.warning(
                "The mask registry's replicas do not confirm writes on their disks; uploads are "
                "acknowledged when %d replicas have received them.",
                self._replicas,
            )
            self._replica_disks = False


def _not_durable(why: str) -> Unavailable:
    return Unavailable(
        f"the mask registry stored the change, but {why} in {CONFIRM_MS / 1000:g} s, so it could "
        "still be lost; repeat the request",
        code="not_durable",
    )
