"""The API process's side of the channel: one connection to each worker of this host."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from vllm.logger import init_logger

from bmt_server.ipc import worker_channel
from bmt_server.ipc.worker_channel import WorkerError

logger = init_logger("vllm.bmt_server")

# The slowest command is a load that fetches the file itself (`files.FETCH_S`).
ANSWER_S = 30.0


class Workers(Protocol):
    """All workers behind one API process. evictions: ids that are no longer resident."""

    evictions: asyncio.Queue[int]

    def resident(self, adapter: int) -> bool:
        """True where every worker has the mask in memory, as far as it has told."""

    async def load(self, adapter: int, name: str, source: str) -> None:
        """Make a mask resident in every worker, and hold it there. Raises WorkerError."""

    async def drop(self, adapter: int) -> None:
        """End the hold of `load`; never raises."""

    async def pin(self, adapter: int, pinned: bool) -> None:
        """Exempt a resident mask from eviction in every worker. Raises WorkerError."""

    async def close(self) -> None: ...


class SocketWorkers:
    """Workers that all listen on this host."""

    def __init__(self, folder: Path, count: int) -> None:
        self.evictions: asyncio.Queue[int] = asyncio.Queue()
        self._links = [
            _Link(worker_channel.socket_path(folder, rank), self._gone) for rank in range(count)
        ]

    def resident(self, adapter: int) -> bool:
        return all(adapter in link.resident for link in self._links)

    async def load(self, adapter: int, name: str, source: str) -> None:
        command = {"do": "load", "id": adapter, "name": name, "source": source}
        await self._all(command)

    async def drop(self, adapter: int) -> None:
        with suppress(WorkerError):
            await self._all({"do": "drop", "id": adapter})

    async def pin(self, adapter: int, pinned: bool) -> None:
        await self._all({"do": "pin", "id": adapter, "pinned": pinned})

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    async def _all(self, command: dict[str, Any]) -> None:
        results = await asyncio.gather(
            *(link.ask(command) for link in self._links), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _gone(self, adapters: list[int]) -> None:
        for adapter in adapters:
            self.evictions.put_nowait(adapter)


class _Link:
    """One worker. Connects when it is first asked, and again after a loss."""

    def __init__(self, path: Path, gone: Callable[[list[int]], None]) -> None:
        self.resident: set[int] = set()
        self._path = path
        self._gone = gone
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[dict[str, Any], asyncio.Future[None]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, command: dict[str, Any]) -> None:
        """Send a command and wait for its answer. Raises WorkerError."""
        writer = await self._connected()
        number = next(self._numbers)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (command, answered)
        try:
            writer.write(worker_channel.encode({"n": number, **command}))
            async with asyncio.timeout(ANSWER_S):
                await answered
        except TimeoutError:
            raise WorkerError(
                f"{self._path.stem} did not answer in {ANSWER_S:g} s", "unavailable"
            ) from None
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                try:
                    reader, self._writer = await asyncio.open_unix_connection(str(self._path))
                except OSError as error:
                    raise WorkerError(
                        f"{self._path.stem} cannot be reached ({error}); has it ended?",
                        "unavailable",
                    ) from None
                self._reader = asyncio.create_task(self._read(reader, self._writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._take(worker_channel.decode(line))
        except (OSError, ValueError) as error:
            logger.warning("%s: the mask channel broke: %s", self._path.stem, error)
        finally:
            self._writer = None
            writer.close()
            # The worker lets go of what a lost connection held.
            lost, self.resident = self.resident, set()
            for _, answered in self._waiting.values():
                if not answered.done():
                    answered.set_exception(
                        WorkerError(f"{self._path.stem} closed the channel", "unavailable")
                    )
            self._gone(list(lost))

    def _take(self, message: dict[str, Any]) -> None:
        if "evicted" in message:
            gone = [a for a in message["evicted"] if a in self.resident]
            self.resident.difference_update(gone)
            self._gone(gone)
            return
        command, answered = self._waiting.get(message["n"], ({}, None))
        if "error" not in message:
            # Here and not where the answer is awaited: the next line may say that it is gone.
            if command.get("do") == "load":
                self.resident.add(command["id"])
            elif command.get("do") == "drop":
                self.resident.discard(command["id"])
        if answered is None or answered.done():
            return
        if "error" in message:
            answered.set_exception(WorkerError(message["error"], message["code"]))
        else:
            answered.set_result(None)
