"""One worker's side of the channel: brings masks and takes them away, beside the steps.

Nothing here may end the engine. Every failure is the answer to the command that met it; a request
for a mask is admitted only when all workers have answered that they hold it.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from bmt_server.ipc import worker_channel
from bmt_server.ipc.affinity import reset_affinity
from bmt_server.ipc.mask_layout import LayoutError
from bmt_server.worker.engine_vllm.mask_fetcher import FetchError, MaskFetcher
from bmt_server.worker.mask_store import PinError
from bmt_server.worker.resident_mask import MaskStoreError
from bmt_server.worker.runtime import MaskRuntime

logger = init_logger("vllm.bmt_server")

# A reader that does not read its answers for so long is gone.
_SEND_S = 5
# Answers that nobody has asked for yet, of calls through the engine.
_KEPT = 1024
# Masks that may be on their way from the registry at once.
_FETCHES = 4


class Loader:
    """Carries out commands on one worker's masks, from any thread; gathers one mask at a time.

    A holder is whoever sent a command: a connection, or `ENGINE` for what came through vLLM. Ids
    that somebody holds stay mapped, so that a running request's mask comes back from eviction
    without any file having to be opened. What nobody holds is forgotten when it is evicted.
    """

    ENGINE = "engine"

    def __init__(self, runtime: MaskRuntime, files: MaskFetcher) -> None:
        self._runtime = runtime
        self._files = files
        self._lock = threading.Lock()
        self._holders: dict[int, set[Hashable]] = {}
        self._connections: set[_Connection] = set()
        self._evicted: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        # Eviction may happen in a step, which must not wait for a socket.
        runtime.store.evicted = lambda ids: self._evicted.put(ids) if ids else None
        threading.Thread(target=self._tell, name="bmt-evicted", daemon=True).start()
        self._later: ThreadPoolExecutor | None = None
        self._answers: dict[int, dict[str, Any] | None] = {}

    def execute(self, holder: Hashable, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to one command, an error of any kind included."""
        try:
            self._execute(holder, command)
        except FetchError as error:
            return _failure(str(error), error.code)
        except LayoutError as error:
            return _failure(str(error), "unavailable")
        except PinError as error:
            return _failure(str(error), "pinned")
        except MaskStoreError as error:
            return _failure(str(error), "unusable")
        except Exception as error:
            logger.exception("Mask command %r failed.", command)
            return _failure(f"{type(error).__name__}: {error}", "unavailable")
        return {"done": True}

    def _execute(self, holder: Hashable, command: dict[str, Any]) -> None:
        do = command.get("do")
        if do == "load":
            self._load(holder, command["id"], command["name"], command["source"])
        elif do == "drop":
            with self._lock:
                self._let_go(holder, command["id"])
        elif do == "pin":
            if not self._runtime.store.pin(command["id"], command["pinned"]):
                raise FetchError(f"adapter {command['id']} is not resident", "unavailable")
        elif do != "ping":
            raise FetchError(
                f"unknown command {do!r}: all processes must run the same version", "unusable"
            )

    def _load(self, holder: Hashable, adapter: int, name: str, source: str) -> None:
        store = self._runtime.store
        # A file may come from the registry, and loads that need none must not wait for it.
        layout = store.layout(adapter) or self._files.open(source)
        with self._lock:
            if not store.resident(adapter):
                self._runtime.add(adapter, name, layout)
            self._holders.setdefault(adapter, set()).add(holder)

    def _let_go(self, holder: Hashable, adapter: int) -> None:
        holders = self._holders.get(adapter, set())
        holders.discard(holder)
        if not holders:
            self._holders.pop(adapter, None)
            self._runtime.remove(adapter)

    def gone(self, holder: Hashable) -> None:
        """A holder has ended. What it held stays until it is evicted: others may ask for it."""
        with self._lock:
            for adapter, holders in list(self._holders.items()):
                holders.discard(holder)
                if not holders:
                    del self._holders[adapter]
                    if not self._runtime.store.resident(adapter):
                        self._runtime.remove(adapter)

    def _tell(self) -> None:
        while True:
            ids = self._evicted.get()
            line = worker_channel.encode({"evicted": ids})
            with self._lock:
                for adapter in ids:
                    if adapter not in self._holders and not self._runtime.store.resident(adapter):
                        self._runtime.remove(adapter)
                connections = list(self._connections)
            for connection in connections:
                connection.send(line)

    # Through vLLM's engine, for workers that this host's API processes cannot connect to. A call
    # holds up the step loop, so it only begins a command, and another asks for the answer.

    def begin(self, command: dict[str, Any]) -> None:
        """Carry a command out later; ask for its answer with its `n`."""
        if self._later is None:
            self._later = ThreadPoolExecutor(_FETCHES, thread_name_prefix="bmt-engine")
        while len(self._answers) >= _KEPT:
            self._answers.pop(next(iter(self._answers)))
        number = command["n"]
        self._answers[number] = None

        def run() -> None:
            reset_affinity()
            self._answers[number] = self.execute(self.ENGINE, command)

        self._later.submit(run)

    def answer(self, number: int) -> dict[str, Any] | None:
        """The answer to a command that was begun, once; None while it is not there."""
        if number not in self._answers:
            return _failure("the worker does not know this command any more", "unavailable")
        answer = self._answers[number]
        if answer is not None:
            del self._answers[number]
        return answer

    # Through a socket.

    def listen(self, path: Path) -> None:
        """Serve API processes at `path`, each in a thread of its own.

        Where no socket can be (a path of more than 107 bytes), they come through the engine.
        """
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            server.bind(str(path))
            server.listen()
        except OSError as error:
            server.close()
            logger.warning("No mask channel at %s (%s): masks load between steps.", path, error)
            return
        threading.Thread(
            target=self._accept, args=(server,), name="bmt-listen", daemon=True
        ).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            accepted, _ = server.accept()
            connection = _Connection(accepted)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="bmt-loader", daemon=True
            ).start()

    def _serve(self, connection: _Connection) -> None:
        reset_affinity()
        try:
            for line in connection.lines():
                command = worker_channel.decode(line)
                answer = self.execute(connection, command)
                connection.send(worker_channel.encode({"n": command.get("n"), **answer}))
        except (OSError, ValueError) as error:
            logger.warning("A mask channel was closed: %s", error)
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
            self.gone(connection)


class _Connection:
    """One API process. Sends come from several threads, whole lines each."""

    def __init__(self, accepted: socket.socket) -> None:
        timeout = struct.pack("ll", _SEND_S, 0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._socket = accepted
        self._sending = threading.Lock()

    def lines(self) -> Any:
        with self._socket.makefile("rb") as file:
            while line := file.readline(worker_channel.MAX_LINE):
                yield line

    def send(self, line: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _failure(message: str, code: worker_channel.Code) -> dict[str, Any]:
    return {"error": message, "code": code}
