"""Embedded registry with its real binary: durable, exclusive on its folder, never orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from bmt_server.registry.embedded import EmbeddedError, EmbeddedValkey

pytestmark = pytest.mark.redis


def client(valkey: EmbeddedValkey) -> redis.Redis:
    return redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://"), socket_timeout=2)


@pytest.mark.parametrize("name", ["plain", "with a space, 'quotes' and ümläut"])
def test_data_survives_a_restart(tmp_path, name):
    folder = tmp_path / name
    for expected in (1, 2):
        with EmbeddedValkey(folder) as valkey, client(valkey) as redis_client:
            assert redis_client.incr("starts") == expected
            socket = Path(valkey.url.removeprefix("unix://"))
            assert socket.stat().st_mode & 0o077 == 0, "only its user may connect"
        assert valkey.pid is None
        assert not socket.exists()


def test_acknowledged_writes_survive_a_kill(tmp_path):
    valkey = EmbeddedValkey(tmp_path)
    valkey.start()
    with client(valkey) as redis_client:
        redis_client.set("a", "1")
        time.sleep(1.2)  # synced each second
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGKILL)
    valkey.stop()
    with EmbeddedValkey(tmp_path) as again, client(again) as redis_client:
        assert redis_client.get("a") == b"1"


def test_a_second_server_on_a_folder_is_refused(tmp_path):
    second = EmbeddedValkey(tmp_path)
    with EmbeddedValkey(tmp_path), pytest.raises(EmbeddedError, match="in use by another"):
        second.start()
    with EmbeddedValkey(tmp_path) as after:
        assert after.pid


def test_valkey_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time; from bmt_server.registry.embedded import EmbeddedValkey\n"
        "v = EmbeddedValkey(sys.argv[1]); v.start(); print(v.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while running(pid):
        assert time.monotonic() < deadline, "the registry outlived its server"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_too_long_socket_path_is_explained(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(EmbeddedError, match="Set TMPDIR to a shorter folder"):
        EmbeddedValkey(tmp_path / "data").start()
    assert list(deep.iterdir()) == []
