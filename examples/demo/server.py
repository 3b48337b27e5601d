"""Starts and ends the demo's server: a process of its own, on a free loopback port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_S = 420
STOP_S = 60


class ServerError(Exception):
    """The server did not start or did not end well; the message shows the end of its log."""


@dataclass(frozen=True)
class Address:
    """Where the server is and the key for it."""

    url: str
    key: str


@contextmanager
def serving(model: str, name: str, folder: Path, tick: Callable[[str], None]) -> Iterator[Address]:
    """A server on `model` while the block runs, ended by SIGTERM after. `tick` hears its news."""
    folder.mkdir(parents=True, exist_ok=True)
    key_file, log = folder / "key", folder / "server.log"
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("bmt-server")), "serve", model]
    command += ["--data-dir", str(folder / "data"), "--key-file", str(key_file)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    command += ["--max-model-len", "1024", "--max-num-seqs", "64"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C in the terminal is the demo's to handle, or the server would get it twice.
            start_new_session=True,
        )
        try:
            _wait(process, url, log, tick)
            yield Address(url, key_file.read_text().strip())
        finally:
            _stop(process, log)


def _wait(
    process: subprocess.Popen[bytes], url: str, log: Path, tick: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        tick(_doing(log))
        time.sleep(0.5)
    raise ServerError(f"the server was not ready within {START_S} s:\n{_tail(log)}")


_STAGES = (
    (r"Application startup complete", "almost there"),
    (r"Warming up done", "starting the API"),
    (r"Warming up model", "compiling the model (vLLM's default)"),
    (r"Masks: mode", "preparing masks"),
    (r"Starting to load model", "loading the model"),
    (r"fingerprint", "starting the engine"),
)


def _doing(log: Path) -> str:
    text = log.read_text(errors="replace")
    return next((what for pattern, what in _STAGES if re.search(pattern, text)), "starting")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        # Its own session, so this ends what it started too, and nothing else.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise ServerError(f"the server did not stop within {STOP_S} s:\n{_tail(log)}") from None


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
