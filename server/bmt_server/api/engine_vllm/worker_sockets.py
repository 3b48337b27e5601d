"""Commands to workers on this host: one Unix socket connection from an API process to each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from bmt_server.api.engine_vllm.workers import ANSWER_TIMEOUT_S
from bmt_server.ipc import worker_channel
from bmt_server.ipc.worker_channel import WorkerError

logger = init_logger("vllm.bmt_server")


class SocketWorkers:
    """Workers that all listen on this host; implements `Workers`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.evictions: asyncio.Queue[int] = asyncio.Queue()
        self._connections = [
            _WorkerConnection(worker_channel.socket_path(folder, rank), self._put_evictions)
            for rank in range(count)
        ]

    def resident(self, adapter: int) -> bool:
        return all(adapter in connection.resident for connection in self._connections)

    async def load(self, adapter: int, name: str, source: str) -> None:
        command = {"do": "load", "id": adapter, "name": name, "source": source}
        await self._run_all(command)

    async def drop(self, adapter: int) -> None:
        with suppress(WorkerError):
            await self._run_all({"do": "drop", "id": adapter})

    async def pin(self, adapter: int, pinned: bool) -> None:
        await self._run_all({"do": "pin", "id": adapter, "pinned": pinned})

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def _run_all(self, command: dict[str, Any]) -> None:
        """Run a command in every worker. Raises WorkerError for the first that fails."""
        results = await asyncio.gather(
            *(connection.run(command) for connection in self._connections), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _put_evictions(self, adapters: list[int]) -> None:
        for adapter in adapters:
            self.evictions.put_nowait(adapter)


class _WorkerConnection:
    """Connection to one worker; opened by the first command, and by the next one after a loss.

    resident: ids in the worker's memory. on_evicted: called with ids that have left it.
    """

    def __init__(self, path: Path, on_evicted: Callable[[list[int]], None]) -> None:
        self.resident: set[int] = set()
        self._path = path
        self._on_evicted = on_evicted
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[dict[str, Any], asyncio.Future[None]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def run(self, command: dict[str, Any]) -> None:
        """Send a command and wait for its answer. Raises WorkerError."""
        writer = await self._connect()
        number = next(self._numbers)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[number] = (command, answered)
        try:
            writer.write(worker_channel.encode({"n": number, **command}))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await answered
        except TimeoutError:
            raise WorkerError(
                f"{self._path.stem} did not answer in {ANSWER_TIMEOUT_S:g} s", "unavailable"
            ) from None
        finally:
            self._pending.pop(number, None)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    async def _connect(self) -> asyncio.StreamWriter:
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
                self._handle(worker_channel.decode(line))
        except (OSError, ValueError) as error:
            logger.warning("%s: the mask channel failed: %s", self._path.stem, error)
        finally:
            self._writer = None
            writer.close()
            # The worker ends all holds of a lost connection.
            lost, self.resident = self.resident, set()
            for _, answered in self._pending.values():
                if not answered.done():
                    answered.set_exception(
                        WorkerError(f"{self._path.stem} closed the channel", "unavailable")
                    )
            self._on_evicted(list(lost))

    def _handle(self, message: dict[str, Any]) -> None:
        if "evicted" in message:
            evicted = [a for a in message["evicted"] if a in self.resident]
            self.resident.difference_update(evicted)
            self._on_evicted(evicted)
            return
        command, answered = self._pending.get(message["n"], ({}, None))
        if "error" not in message:
            # Updated here and not after `await answered`: the next line may be its eviction.
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
