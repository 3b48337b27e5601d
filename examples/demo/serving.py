"""Starts and ends the demo's server: a process of its own, on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx2
from errors import DemoError
from processes import end_group, program

START_S = 420
STOP_S = 60
# vLLM does not always hear SIGTERM before it is ready; there is nothing to lose then.
STOP_STARTING_S = 5


class ServerError(DemoError):
    """The server did not start or did not end well; the message shows the end of its log."""


@dataclass(frozen=True)
class Address:
    """Address of the server and its key."""

    url: str
    key: str


class Server:
    """`bmt-server serve` on the embedded registry, all of its data and its log in `folder`.

    A context manager: at the end of the block nothing of it runs any more.
    """

    def __init__(self, model: str, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ready = False
        self._key_file, self._log = folder / "key", folder / "server.log"
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [program("bmt-server"), "serve", model]
        command += ["--data-dir", str(folder / "data"), "--key-file", str(self._key_file)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
        command += ["--max-model-len", "1024", "--max-num-seqs", "64"]
        # Prompts of one task begin alike, and whole blocks are what the prefix cache shares.
        command += ["--block-size", "32"]
        command += compiler_flags()
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # What it is doing is read from its log (_STAGES).
                env={"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ, "VLLM_LOGGING_LEVEL": "INFO"},
                # Ctrl-C in the terminal is the demo's to handle, or the server would get it too.
                start_new_session=True,
            )

    def wait(self, tick: Callable[[str], None]) -> Address:
        """Return when it is ready; `tick` hears what it is doing. Raises ServerError."""
        deadline = time.monotonic() + START_S
        with httpx2.Client(timeout=2, trust_env=False) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    code = self._process.returncode
                    raise ServerError(f"the server ended with {code}:\n{self._tail()}")
                try:
                    if client.get(f"{self._url}/readyz").status_code == 200:
                        self._ready = True
                        return Address(self._url, self._key_file.read_text().strip())
                except httpx2.HTTPError:
                    pass
                tick(_doing(self._log.read_text(errors="replace")))
                time.sleep(0.5)
        raise ServerError(f"the server was not ready within {START_S} s:\n{self._tail()}")

    def stop(self) -> int:
        """End it with SIGTERM. Its exit code. Raises ServerError where it does not end cleanly."""
        try:
            code = self._end()
        except subprocess.TimeoutExpired:
            raise ServerError(
                f"the server did not stop within {STOP_S} s:\n{self._tail()}"
            ) from None
        if code not in (0, -signal.SIGTERM):
            raise ServerError(f"the server stopped with {code}:\n{self._tail()}")
        return code

    def _end(self) -> int:
        try:
            self._process.send_signal(signal.SIGTERM)
            return self._process.wait(STOP_S if self._ready else STOP_STARTING_S)
        finally:
            # What it left, or all of it where a second Ctrl-C does not let it finish.
            end_group(self._process.pid)
            self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._end()
        end_group(self._process.pid)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])


def compiler_flags() -> list[str]:
    """vLLM flags for a host without a compiler: vLLM compiles the model by default."""
    return [] if shutil.which("g++") or shutil.which("clang++") else ["--enforce-eager"]


_STAGES = (
    (r"Application startup complete", "almost there"),
    (r"Warming up done", "starting the API"),
    (r"Warming up model", "compiling the model (vLLM's default)"),
    (r"Masks: mode", "preparing masks"),
    (r"Starting to load model", "loading the model"),
    (r"fingerprint", "starting the engine"),
)


def _doing(log: str) -> str:
    return next((what for pattern, what in _STAGES if re.search(pattern, log)), "starting")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
