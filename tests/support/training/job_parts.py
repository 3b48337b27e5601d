"""Fine-tuning jobs while their parts are killed: a registry, a server and workers, started again.

All are processes: the registry a Valkey with an append-only file, the server the real API without
an engine, the workers `bmt-train worker`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2

from tests.support.http.ports import free_port
from tests.support.scenarios.nodes import Node

ROOT = Path(__file__).resolve().parents[3]


class Parts:
    """The processes of a scenario. Each may be killed and is started again by `kill`.

    worker_key: of the scope `train`.
    """

    def __init__(
        self, folder: Path, model: Path, registry: Node, worker_key: str, workers: int
    ) -> None:
        self.folder, self.model, self.registry = folder, model, registry
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._key = worker_key
        self._log = (folder / "parts.log").open("ab")
        self._server = self._start_server()
        self._workers = [self._start_worker(n) for n in range(workers)]

    def kill(self, what: str, chosen: random.Random) -> None:
        """Kill one `registry`, `server` or `worker` by SIGKILL, and start it again."""
        if what == "registry":
            self.registry.kill()
            time.sleep(chosen.uniform(0.1, 2))
            self.registry.start()
        elif what == "server":
            self._end(self._server)
            time.sleep(chosen.uniform(0.1, 2))
            self._server = self._start_server()
        else:
            which = chosen.randrange(len(self._workers))
            self._end(self._workers[which])
            self._workers[which] = self._start_worker(which)

    def restart_ended(self) -> None:
        """Start workers again that ended by themselves, as an orchestrator does."""
        for n, worker in enumerate(self._workers):
            if worker.poll() is not None:
                self._workers[n] = self._start_worker(n)

    def ready(self, within_s: float = 120) -> None:
        """Wait until the server answers."""
        until(lambda: httpx2.get(f"{self.url}/v1/models").status_code == 401, within_s)

    def close(self) -> None:
        for one in [*self._workers, self._server]:
            self._end(one)
        self._log.close()

    def _start_server(self) -> subprocess.Popen[bytes]:
        module = "tests.support.children.job_replica"
        arguments = [self.registry.url, str(self.folder), str(self.model), str(self.port)]
        return self._start([sys.executable, "-m", module, *arguments], {})

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        # Half of them share a folder, and so take over each other's checkpoints.
        work = self.folder / ("work" if number % 2 == 0 else f"work-{number}")
        command = [sys.executable, "-m", "bmt_trainer", "worker", "--server", self.url]
        command += ["--model", str(self.model), "--folder", str(work), "--device", "cpu"]
        command += ["--poll-seconds", "0.5", "--lease-seconds", "6", "--checkpoint-every", "5"]
        return self._start(command, {"BMT_API_KEY": self._key})

    def _start(self, command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=self._log,
            stderr=self._log,
        )

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()


class Killer:
    """Kills parts at random times until it is stopped. kills: how many of each."""

    def __init__(self, parts: Parts, seed: int, every_s: tuple[float, float]) -> None:
        self.kills = {"worker": 0, "server": 0, "registry": 0}
        self._parts, self._random, self._every_s = parts, random.Random(seed), every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(*self._every_s)):
            (what,) = self._random.choices([*self.kills], weights=(3, 1, 1))
            self._parts.kill(what, self._random)
            self.kills[what] += 1
            self._parts.restart_ended()


def until(condition: Callable[[], bool], within_s: float) -> None:
    """Wait for a condition that may raise errors of HTTP meanwhile."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if condition():
                return
        except httpx2.HTTPError:
            pass
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)
