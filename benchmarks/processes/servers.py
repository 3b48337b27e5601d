"""HTTP servers as processes: `bmt-server serve`, and vLLM's own for the baselines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT, dtype, engine_environment

NAME = "bench"  # the base model's public name
START_S = 900
STOP_S = 60


class ServerError(RuntimeError):
    """A server did not start; the message shows the end of its log."""


class Server:
    """A running server. url: where it listens; key: what requests need, or empty."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ready: str,
        folder: Path,
        plain: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.key = ""
        self._ready, self._log = self.url + ready, folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=engine_environment(plain),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when it is ready. Raises ServerError."""
        import httpx2

        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(self._ready, timeout=5).status_code == 200:
                    return
            time.sleep(0.25)
        raise ServerError(f"the server did not start; its log ends:\n{self.tail()}")

    @property
    def registry(self) -> str:
        """URL of the embedded registry, read from the log; empty for vLLM's own server."""
        _, _, rest = self._log.read_text(errors="replace").partition("embedded registry at ")
        return rest.split()[0] if rest else ""

    def main_cpu_seconds(self) -> float:
        """CPU seconds of the process that answers HTTP; engine and registry are its children."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(x) for x in stat[11:13]) / os.sysconf("SC_CLK_TCK")

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def masks_server(model: Path, folder: Path, *flags: str) -> Iterator[Server]:
    """`bmt-server serve` on its embedded registry, empty at first; ended with the block."""
    shutil.rmtree(folder, ignore_errors=True)
    port, key_file = free_port(), folder / "key"
    command = ["-m", "bmt_server", "serve", str(model), *_common(port), *flags]
    command += ["--data-dir", str(folder / "data"), "--key-file", str(key_file)]
    server = Server(command, port, "/readyz", folder)
    try:
        server.wait()
        server.key = key_file.read_text().strip()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder / "data", ignore_errors=True)


@contextlib.contextmanager
def vllm_server(model: Path, folder: Path, *flags: str, plain: bool = False) -> Iterator[Server]:
    """vLLM's own server, without anything of this project; ended with the block.

    It gets what bmt-server sets for the CPU, unless it is to be `plain`.
    """
    port = free_port()
    command = [
        "-m",
        "benchmarks.processes.vllm_server",
        "--model",
        str(model),
        *_common(port),
        *flags,
    ]
    server = Server(command, port, "/health", folder, plain)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def lora_flags(
    adapters: Sequence[Path], rank: int, slots: int, held: int | None = None
) -> list[str]:
    """vLLM's flags for adapters named a0, a1, …; `held` of them (default: all) in CPU memory."""
    modules = [json.dumps({"name": f"a{i}", "path": str(p)}) for i, p in enumerate(adapters)]
    flags = ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(slots)]
    return [
        *flags,
        "--max-cpu-loras",
        str(max(slots, held or len(adapters))),
        "--lora-modules",
        *modules,
    ]


def upload(server: Server, files: Sequence[Path], names: Sequence[str]) -> float:
    """PUT masks, four at a time. Returns seconds. Raises httpx2.HTTPStatusError."""
    from concurrent.futures import ThreadPoolExecutor

    import httpx2

    headers = {"Authorization": f"Bearer {server.key}"}
    start = time.monotonic()
    with httpx2.Client(timeout=60, headers=headers, trust_env=False) as client:

        def one(item: tuple[Path, str]) -> None:
            path, name = item
            url = f"{server.url}/v1/masks/{name}"
            client.put(url, content=path.read_bytes()).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, zip(files, names, strict=True)))
    return time.monotonic() - start


def metrics(server: Server) -> dict[str, float]:
    """The server's `/metrics`, labels dropped, summed by name."""
    import httpx2

    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    text = httpx2.get(f"{server.url}/metrics", headers=headers, timeout=30, trust_env=False).text
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _common(port: int) -> list[str]:
    """Flags of every server: masks, bare and LoRA."""
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    return [
        *flags,
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "32",
        "--seed",
        "0",
        "--dtype",
        dtype(),
    ]
