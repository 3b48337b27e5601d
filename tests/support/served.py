"""A real server for the tests: `bmt-server serve` on a real registry that a test may stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2
import redis
from bmt_server.registry.embedded import binary_path

from tests.support.http.ports import free_port

START_S = 240
STOP_S = 60


class Valkey:
    """A Valkey on a Unix socket that stays where it is across stop and start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket_dir = tempfile.mkdtemp(prefix="bmt-t-")
        self.socket = f"{self.socket_dir}/s"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        options = "--port 0 --appendonly yes --maxmemory-policy noeviction --unixsocket"
        self.process = subprocess.Popen(
            [str(binary_path()), *options.split(), self.socket, "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        client = redis.Redis(unix_socket_path=self.socket)
        for _ in range(1000):
            # A client waits for seconds between its attempts to connect.
            if Path(self.socket).exists():
                break
            time.sleep(0.01)
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.05)
        client.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.socket_dir, ignore_errors=True)


class Served:
    """`bmt-server serve` as a process; `url` and `key` are for clients.

    wait: return when it is ready; else `wait` does. port: a free one where it is 0. program, cwd:
    a server that is installed elsewhere, and where it starts; inherit: the environment under `env`.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        *flags: str,
        registry: str = "",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        port: int = 0,
        program: Sequence[str] = (sys.executable, "-m", "bmt_server"),
        cwd: Path | None = None,
        inherit: Mapping[str, str] = os.environ,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._key_file = folder / "key"
        command = [*program, "serve", str(model)]
        command += ["--data-dir", str(folder / "data"), "--key-file", str(self._key_file)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--served-model-name", "smol", "--max-model-len", "512", *flags]
        if registry:
            command += ["--registry", registry]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=cwd,
                env={**inherit, "VLLM_CPU_KVCACHE_SPACE": "1", **(env or {})},
            )
        self.key = ""
        if wait:
            self.wait()

    def wait(self, within_s: float = START_S) -> None:
        """Return when it is ready, with the key that it wrote, if it did."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()[-4000:]}")
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    if self._key_file.exists():
                        self.key = self._key_file.read_text().strip()
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.25)
        self.stop()
        raise AssertionError(f"the server was not ready in time:\n{self.log.read_text()[-4000:]}")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def metrics(self) -> dict[str, float]:
        """Values of `/metrics` by name and labels."""
        text = httpx2.get(f"{self.url}/metrics", headers=self.headers).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def stop(self) -> int:
        """SIGTERM, and wait. The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


def engine_of(server: Served) -> int:
    """The process id of its EngineCore."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            name = path.with_name("cmdline").read_text()
        except OSError:
            continue
        if parent == server.process.pid and "EngineCore" in name:
            return int(path.parent.name)
    raise AssertionError("no EngineCore among the server's children")


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for a condition; fails if it does not come true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
