"""Keys of workers that a server starts: each worker has one, which ends with it.

A key that a killed server leaves behind opens nothing: its secret was in the memory of
processes that ended with the server, and it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from bmt_server.errors import ApiError
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.keys.writer import KeyWriter

LABEL = "worker of --train"
# `infer`: graders ask the base and masks of the tenant `default`, as for any worker.
SCOPES = ("train", "infer")
EXPIRES = "1d"
#: Seconds between two prolongations.
PROLONG_S = 3600.0

T = TypeVar("T")


class WorkerKeys(Protocol):
    """Keys for workers. Methods raise ApiError."""

    def make(self) -> tuple[str, str]:
        """A new key: its secret and its id."""

    def prolong(self, key_id: str) -> None:
        """Let a key hold for another day from now."""

    def end(self, key_id: str) -> None:
        """Revoke a key; one that is gone is no error."""


class RegistryKeys:
    """Keys in a registry, each call by a connection of its own: they are hours apart."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._label = f"{LABEL} on {socket.gethostname()[:60]}"

    def make(self) -> tuple[str, str]:
        async def work(keys: KeyWriter) -> tuple[str, str]:
            for record in await keys.records():
                if record.label == self._label and record.status == "expired":
                    with contextlib.suppress(ApiError):  # another server is faster
                        await keys.revoke(record.key_id)
            made = await keys.create(SCOPES, label=self._label, expires=EXPIRES)
            assert made is not None
            return made[0], made[1].key_id

        return self._run(work)

    def prolong(self, key_id: str) -> None:
        self._run(lambda keys: keys.prolong(key_id, EXPIRES))

    def end(self, key_id: str) -> None:
        async def work(keys: KeyWriter) -> None:
            with contextlib.suppress(ApiError):
                await keys.revoke(key_id)

        self._run(work)

    def _run(self, work: Callable[[KeyWriter], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = RegistryConnection(self._url, connections=1)
            try:
                return await work(ApiKeyStore(connection))
            finally:
                await connection.close()

        return asyncio.run(run())


class NoKeys:
    """Of a server without keys, which asks for none."""

    def make(self) -> tuple[str, str]:
        return "none", ""

    def prolong(self, key_id: str) -> None:
        pass

    def end(self, key_id: str) -> None:
        pass
