"""A TCP proxy that can go wrong, and a round-robin one, on a thread and event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

Mode = Literal["pass", "cut", "stall", "delay", "reset"]
T = TypeVar("T")
_PIECE = 1 << 16


class _Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def done() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(30)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class _Listener:
    """Accepts on a free port of loopback; `handle` serves one connection."""

    def __init__(self) -> None:
        self._own = _Loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = self._own.run(self._listen)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accepted, "127.0.0.1", 0)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self.handle(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _drop(self) -> None:
        """End all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            await self._drop()

        self._own.run(end)
        self._own.end()


class FaultProxy(_Listener):
    """Passes bytes on to a Unix socket or to a port of loopback, as `mode` lets it.

    cut: connections are closed, and new ones too, at once; reset: the same with RST, and only when
    something was sent; stall: nothing passes, all is kept; delay: answers come `delay_s` late.
    """

    def __init__(self, target: str | int) -> None:
        self._target = target
        self._mode: Mode = "pass"
        self._delay_s = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        super().__init__()

    @property
    def url(self) -> str:
        """For a registry behind it."""
        return f"redis://127.0.0.1:{self.port}"

    def set(self, mode: Mode, delay_s: float = 0.0) -> None:
        """Apply a fault from now on, to open connections too."""

        async def change() -> None:
            self._mode, self._delay_s = mode, delay_s if mode == "delay" else 0.0
            (self._flows.clear if mode == "stall" else self._flows.set)()
            if mode in ("cut", "reset"):
                await self._drop()

        self._own.run(change)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            return
        if self._mode == "reset":
            await reader.read(1)
            _reset(writer)
            return
        if isinstance(self._target, str):
            there = await asyncio.open_unix_connection(self._target)
        else:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there[1], late=False))
                group.create_task(self._pump(there[0], writer, late=True))
        except* OSError:
            pass
        finally:
            there[1].transport.abort()
            if self._mode == "reset":
                _reset(writer)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, late: bool
    ) -> None:
        """Bytes in their order; what is late keeps its pace, as on a long line."""
        loop = asyncio.get_running_loop()
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def write() -> None:
            while True:
                due, data = await line.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._flows.wait()
                if not data:
                    raise ConnectionResetError("the other side has closed")
                sink.write(data)
                await sink.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            while True:
                data = await source.read(_PIECE)
                await line.put((loop.time() + (self._delay_s if late else 0.0), data))
                if not data:
                    break


class Balancer(_Listener):
    """Gives each connection to the next of its targets, as a Service without health of its own.

    `targets` are ports; whoever takes servers away or adds them sets it.
    """

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets
        self._next = 0
        super().__init__()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        targets = self.targets
        port = targets[self._next % len(targets)]
        self._next += 1
        there = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, there[1]))
                group.create_task(_copy(there[0], writer))
        except* OSError:
            pass
        finally:
            there[1].transport.abort()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_PIECE):
        sink.write(data)
        await sink.drain()
    with contextlib.suppress(OSError, RuntimeError):
        sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    handle: Any = writer.get_extra_info("socket")
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
