"""The worker that a server starts: its key, its priority, its restarts and its end.

The worker is a stub; the real one is in tests/server/serving/test_fine_tuning.py.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from bmt_server.errors import Unauthorized
from bmt_server.ipc.stats_files import TrainingStats
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.training.keys import RegistryKeys
from bmt_server.training.supervisor import Supervisor

from tests.support.children import worker_of_server
from tests.support.scenarios.nodes import node
from tests.support.served import until


@contextmanager
def server():
    """Its port, and an event that makes it ready."""
    ready = threading.Event()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if ready.is_set() and self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port, ready
        made.shutdown()


def workers(folder: Path) -> list[dict]:
    """Words, keys and processes of the workers, in the order of their starts."""
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in found if path.stem.isdigit()]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def verified(url: str, key: str):
    async def ask():
        connection = RegistryConnection(url)
        try:
            return await ApiKeyStore(connection).verify(key)
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_a_worker_runs_from_the_servers_readiness_to_its_end(tmp_path):
    said: list[str] = []
    folder = tmp_path / "work"
    folder.mkdir()
    with node(tmp_path / "r") as registry, server() as (port, ready):
        keys = RegistryKeys(registry.url)
        plan = worker_of_server.plan(port, folder)
        with Supervisor(plan, keys, str(tmp_path), said.append, first_s=0.1):
            until(lambda: TrainingStats.read_all(tmp_path) == [TrainingStats(up=0, starts=0)])
            assert registry.client().hlen("{bmt}:keys") == 0
            ready.set()
            until(lambda: len(workers(folder)) == 1)
            (first,) = workers(folder)
            principal = verified(registry.url, first["key"])
            assert (principal.tenant, principal.scopes) == ("default", {"train", "infer"})
            assert principal.expires is not None
            assert first["key"] not in first["words"]
            assert first["inherited"] == [os.SCHED_IDLE, 19]
            # The engine has sessions of its own, so niceness within the worker's is not enough.
            grouped = Path("/proc/self/autogroup").exists()
            assert first["session_niceness"] == (19 if grouped else None)
            assert first["out_of_memory"] == 1000
            os.kill(first["pid"], signal.SIGKILL)
            until(lambda: len(workers(folder)) == 2)
            second = workers(folder)[1]
            until(lambda: TrainingStats.read_all(tmp_path) == [TrainingStats(up=1, starts=2)])
            with pytest.raises(Unauthorized):
                verified(registry.url, first["key"])
            verified(registry.url, second["key"])
        assert not alive(second["pid"])
        assert registry.client().hlen("{bmt}:keys") == 0
    assert said.count("train: a line of the worker") == 2
    assert "train: the worker ended by signal 9; it is started again in 0.1 s" in said
    assert not any(first["key"] in line or second["key"] in line for line in said)


def test_a_worker_does_not_outlive_a_server_that_is_killed(tmp_path):
    with server() as (port, ready):
        ready.set()
        command = [sys.executable, "-m", worker_of_server.__name__, "server", str(port)]
        process = subprocess.Popen([*command, str(tmp_path)], cwd=worker_of_server.ROOT)
        until(lambda: len(workers(tmp_path)) == 1)
        (one,) = workers(tmp_path)
        assert alive(one["pid"])
        process.kill()
        process.wait()
        until(lambda: not alive(one["pid"]), 5)


def test_a_registry_that_is_away_keeps_a_worker_back_and_no_longer(tmp_path):
    said: list[str] = []
    folder = tmp_path / "work"
    folder.mkdir()
    with node(tmp_path / "r") as registry, server() as (port, ready):
        ready.set()
        registry.kill()
        plan = worker_of_server.plan(port, folder)
        keys = RegistryKeys(registry.url)
        with Supervisor(plan, keys, str(tmp_path), said.append, first_s=0.1):
            until(lambda: any("no key for the worker" in line for line in said))
            registry.start()
            until(lambda: len(workers(folder)) == 1)


def test_a_key_is_prolonged_and_those_of_killed_servers_are_removed(tmp_path):
    with node(tmp_path / "r") as registry:
        keys, client = RegistryKeys(registry.url), registry.client()
        secret, key_id = keys.make()

        def expire() -> None:
            ((field, record),) = client.hgetall("{bmt}:keys").items()
            past = {**json.loads(record), "expires": "2020-01-01T00:00:00+00:00"}
            client.hset("{bmt}:keys", field, json.dumps(past))

        expire()
        with pytest.raises(Unauthorized):
            verified(registry.url, secret)
        keys.prolong(key_id)
        verified(registry.url, secret)
        expire()
        other, _ = keys.make()
        assert client.hlen("{bmt}:keys") == 1
        verified(registry.url, other)
