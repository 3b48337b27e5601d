"""Worker side of the mask channel: loads and removes masks while steps run.

No failure here may end the engine. Each one becomes the answer to its command, and the API process
admits a request for a mask only after all workers have answered that they hold it.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Hashable, Iterator
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

# Seconds until a peer that does not read its answers counts as gone.
_SEND_S = 5
# Answers kept until they are fetched, for commands through the engine.
_ANSWERS = 1024
# Concurrent downloads from the registry.
_FETCHES = 4


class MaskLoader:
    """Executes commands on one worker's masks, from any thread; adds one mask at a time.

    A holder is the sender of a command: a connection, or `ENGINE` for commands that came through
    vLLM's engine. Ids with a holder stay mapped, so that a running request's mask returns from
    eviction without opening a file. Ids without a holder are forgotten when they are evicted.
    """

    ENGINE = "engine"

    def __init__(
        self,
        runtime: MaskRuntime,
        files: MaskFetcher,
        evictions: queue.SimpleQueue[list[int]],
    ) -> None:
        """evictions: ids that the runtime's store evicted. A queue, because an eviction may happen
        in a step, which must not wait for a socket."""
        self._runtime = runtime
        self._files = files
        self._evictions = evictions
        self._lock = threading.Lock()
        self._holders: dict[int, set[Hashable]] = {}
        self._connections: set[_Connection] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._answers: dict[int, dict[str, Any] | None] = {}
        threading.Thread(target=self._report_evictions, name="bmt-evicted", daemon=True).start()

    def execute(self, holder: Hashable, command: dict[str, Any]) -> dict[str, Any]:
        """Execute one command and return its answer, which may be an error of any kind."""
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
                self._release(holder, command["id"])
        elif do == "pin":
            if not self._runtime.store.pin(command["id"], command["pinned"]):
                raise FetchError(f"adapter {command['id']} is not resident", "unavailable")
        elif do != "ping":
            raise FetchError(
                f"unknown command {do!r}: all processes must run the same version", "unusable"
            )

    def _load(self, holder: Hashable, adapter: int, name: str, source: str) -> None:
        store = self._runtime.store
        # Outside the lock: a download must not delay loads that need none.
        layout = store.layout(adapter) or self._files.open(source)
        with self._lock:
            if not store.resident(adapter):
                self._runtime.add(adapter, name, layout)
            self._holders.setdefault(adapter, set()).add(holder)

    def _release(self, holder: Hashable, adapter: int) -> None:
        holders = self._holders.get(adapter, set())
        holders.discard(holder)
        if not holders:
            self._holders.pop(adapter, None)
            self._runtime.remove(adapter)

    def release_all(self, holder: Hashable) -> None:
        """Release all ids of a holder that ended. Their masks stay until they are evicted."""
        with self._lock:
            for adapter, holders in list(self._holders.items()):
                holders.discard(holder)
                if not holders:
                    del self._holders[adapter]
                    if not self._runtime.store.resident(adapter):
                        self._runtime.remove(adapter)

    def _report_evictions(self) -> None:
        while True:
            ids = self._evictions.get()
            line = worker_channel.encode({"evicted": ids})
            with self._lock:
                for adapter in ids:
                    if adapter not in self._holders and not self._runtime.store.resident(adapter):
                        self._runtime.remove(adapter)
                connections = list(self._connections)
            for connection in connections:
                connection.send(line)

    # Commands through vLLM's engine, for workers that the API processes cannot connect to. A call
    # blocks the step loop, so one call submits a command, and later calls poll for its answer.

    def submit(self, command: dict[str, Any]) -> None:
        """Execute a command in another thread; `result` of its `n` returns the answer."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="bmt-engine")
        while len(self._answers) >= _ANSWERS:
            self._answers.pop(next(iter(self._answers)))
        number = command["n"]
        self._answers[number] = None

        def run() -> None:
            reset_affinity()
            self._answers[number] = self.execute(self.ENGINE, command)

        self._pool.submit(run)

    def result(self, number: int) -> dict[str, Any] | None:
        """Return and forget the answer to a submitted command; None while it runs."""
        if number not in self._answers:
            return _failure(f"the worker has no command {number}; send it again", "unavailable")
        answer = self._answers[number]
        if answer is not None:
            del self._answers[number]
        return answer

    # Commands through a socket.

    def listen(self, path: Path) -> None:
        """Serve API processes at `path`, one thread per connection.

        If the socket cannot be created (a path of more than 107 bytes), they use the engine.
        """
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            server.bind(str(path))
            server.listen()
        except OSError as error:
            server.close()
            logger.warning(
                "No mask channel at %s (%s): masks are loaded between steps.", path, error
            )
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
            logger.warning("Mask channel closed: %s", error)
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
            self.release_all(connection)


class _Connection:
    """Connection of one API process. Several threads send, whole lines each."""

    def __init__(self, accepted: socket.socket) -> None:
        timeout = struct.pack("ll", _SEND_S, 0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._socket = accepted
        self._sending = threading.Lock()

    def lines(self) -> Iterator[bytes]:
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
