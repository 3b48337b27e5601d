"""The chart's own Valkey, started by its container's script on a real one: any password."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import redis
from bmt_server.ipc.registry_address import RegistryAddress, with_password
from bmt_server.registry.embedded import binary_path
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.deploy.chart import named, one


def _started(folder: Path, password: str) -> tuple[subprocess.Popen[str], str]:
    """The process of the container's script, and its socket."""
    spec = one(named("gpu"), "StatefulSet")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (script,) = container["args"]
    socket = str(folder / "s")
    program = folder / "valkey-server"
    program.write_text(f'#!/bin/sh\nexec {binary_path()} "$@" --port 0 --unixsocket {socket}\n')
    program.chmod(0o755)
    variables = {
        **{"PATH": f"{folder}:{os.environ['PATH']}", "VALKEY_PASSWORD": password},
        **{"AUTH_FILE": str(folder / "auth.conf"), "DATA": str(folder)},
    }
    process = subprocess.Popen(
        [*container["command"], script],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, socket


@pytest.mark.found
@pytest.mark.parametrize(
    "password", ["ab/cd", "p@ss#", "--x", "a b", "q\"u'o\\te$HOME`", "ü", "end\n", "%41"]
)
def test_any_password_is_valkeys_and_the_servers(tmp_path, password):
    process, socket = _started(tmp_path, password)
    try:
        url = with_password(f"unix://{socket}", password.rstrip("\n"))
        client = RegistryAddress.parse(url).blocking_client()
        for _ in range(1000):
            if Path(socket).exists():
                break
            time.sleep(0.01)
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(redis.AuthenticationError):
            # The client takes a refusal for a lost connection, and would try again.
            redis.Redis(unix_socket_path=socket, retry=Retry(NoBackoff(), 0)).ping()
        # Others on the node see command lines.
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        assert password.strip().encode() not in command or len(password) < 4
        assert (tmp_path / "auth.conf").stat().st_mode & 0o077 == 0
        client.close()
    finally:
        process.kill()
        process.communicate()


def test_valkey_without_a_password_does_not_start(tmp_path):
    process, socket = _started(tmp_path, "")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "password is empty" in output
    assert not Path(socket).exists()
