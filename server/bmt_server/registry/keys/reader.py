"""Look-ups of API keys: in batches, one at a time, fair between peers.

Anybody can make well-formed keys, and each has to be looked up. So keys that arrive during a
look-up wait for the next one, which reads them all by one command and takes at most `_SHARE` of one
peer. Strangers therefore cost the registry the same few commands, however many they are, and delay
an honest key of another peer by one batch. The peer is the address of the connection, or the one
that a trusted proxy states: uvicorn replaces it for the proxies in FORWARDED_ALLOW_IPS alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import deque
from functools import partial

from bmt_server.errors import ApiError, RateLimited
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import RegistryConnection, end_task

KEYS = PREFIX + "keys"
# Keys of one peer in one batch, keys of one peer that may wait, and keys in one batch.
_SHARE = 64
WAITING = 1024
_BATCH = 1024
# Pause after a batch with a key that does not exist.
_PAUSE_S = 0.02


class KeyReader:
    """Reads records by the keys' hashes."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection = connection
        self._pending: dict[str, asyncio.Future[bytes | None]] = {}
        self._waiting: dict[str, deque[str]] = {}
        self._task: asyncio.Task[None] | None = None

    async def read(self, digest: str, peer: str) -> bytes | None:
        """Record of a key, None if there is none; requests for the same key share a look-up.

        Raises RegistryDown, and RateLimited if too many keys of the peer wait.
        """
        found = self._pending.get(digest)
        if found is None:
            queue = self._waiting.setdefault(_network(peer), deque())
            if len(queue) >= WAITING:
                raise RateLimited(
                    "too many unknown API keys from this address; check the key and try again "
                    "shortly",
                    code="unknown_keys",
                )
            queue.append(digest)
            found = self._pending[digest] = asyncio.get_running_loop().create_future()
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="bmt-key-reader")
        # A request that is canceled does not end the look-up of the others.
        return await asyncio.shield(found)

    async def close(self) -> None:
        """End the look-up in progress."""
        task, self._task = self._task, None
        await end_task(task)
        for found in self._pending.values():
            found.cancel()
        self._pending.clear()

    async def _run(self) -> None:
        quick = self._connection.quick
        while batch := self._take():
            values: list[bytes | None] = []
            error: ApiError | None = None
            try:
                values = await self._connection.call(partial(quick.hmget, KEYS, batch))
            except ApiError as refused:
                error = refused
            for i, digest in enumerate(batch):
                found = self._pending.pop(digest)
                if found.done():
                    continue
                if error is None:
                    found.set_result(values[i])
                else:
                    found.set_exception(error)
                    with contextlib.suppress(ApiError):
                        found.result()  # read, because all who wait may be gone
            if None in values:
                await asyncio.sleep(_PAUSE_S)

    def _take(self) -> list[str]:
        """The next batch, from all peers in turn."""
        batch: list[str] = []
        for peer in list(self._waiting):
            queue = self._waiting.pop(peer)
            share = min(_SHARE, _BATCH - len(batch), len(queue))
            batch += [queue.popleft() for _ in range(share)]
            if queue:
                self._waiting[peer] = queue  # now behind the others
        return batch


def _network(peer: str) -> str:
    """The address, or the /64 of an IPv6 address, which one host has whole."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return peer
    if (mapped := address.ipv4_mapped) is not None:  # as a socket for both has them
        return str(mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
