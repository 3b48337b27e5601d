"""The chart's own Valkey, by its scripts on a real one: any password, snapshots, restoration."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import redis
from bmt_server.ipc.registry_address import RegistryAddress, with_password
from bmt_server.registry.embedded import binary_path
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.deploy.chart import environment, named, one, pods, refusal, render, validate
from tests.support.deploy.scripts import programs, run_script
from tests.support.served import Valkey


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


@pytest.mark.found
def test_a_snapshot_is_restored_once(tmp_path):
    command_line = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if command_line is None:
        pytest.skip("neither valkey-cli nor redis-cli is there")
    check = tmp_path / "bin/valkey-check-rdb"
    variables = programs(
        tmp_path / "bin",
        valkey_server=f'exec {binary_path()} "$@"',
        # Of a server on a Unix socket in place of a host.
        valkey_cli=f'case "$1" in -h) shift 4; set -- -s "$LIVE" "$@";; esac; '
        f'exec {command_line} "$@"',
    )
    check.symlink_to(binary_path())
    folder, backup = tmp_path / "data", tmp_path / "backup"
    for path in (folder, backup):
        path.mkdir()
    live = Valkey(folder)
    live.start()
    client = redis.Redis(unix_socket_path=live.socket)
    try:
        client.set("mask", b"\x00one")
        # Valkey waits this long for more replicas before it sends a snapshot.
        client.config_set("repl-diskless-sync-delay", 0)
        copies = variables | {"HOST": "h", "KEEP": "2", "LIVE": live.socket, "FOLDER": str(backup)}
        (backup / "masks-20200101T000000Z.rdb").touch()
        (backup / "masks-20210101T000000Z.rdb").touch()
        (backup / "masks-cut.rdb.part").touch()
        done = run_script("backup.sh", copies)
        assert done.returncode == 0, done.stdout + done.stderr
        *_, newest = sorted(p.name for p in backup.iterdir())
        assert sorted(p.name for p in backup.iterdir()) == ["masks-20210101T000000Z.rdb", newest]
        client.set("mask", b"later")
    finally:
        client.close()
        live.close()
    restore = variables | {"SNAPSHOT": newest, "DATA": str(folder), "FOLDER": str(backup)}
    restore |= {"SOCKET": f"{live.socket_dir}-r", "PAUSE": "0.05"}
    missing = run_script("restore.sh", restore | {"SNAPSHOT": "masks-x.rdb"})
    assert missing.returncode == 1
    assert newest in missing.stdout
    done = run_script("restore.sh", restore)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Valkey(folder)
    again.start()
    client = redis.Redis(unix_socket_path=again.socket)
    try:
        for _ in range(100):
            if not client.info("persistence")["loading"]:
                break
            time.sleep(0.05)
        assert client.get("mask") == b"\x00one"
        client.set("mask", b"new")
    finally:
        client.close()
        again.close()
    assert "before" in run_script("restore.sh", restore).stdout


def test_the_pod_of_valkey_restores_before_it_starts():
    restored = ("--set", "valkey.enabled=true", "--set", "valkey.restore=masks-1.rdb")
    assert "backup.existingClaim" in refusal(*restored)
    objects = render(*restored, "--set", "backup.existingClaim=backups")
    validate(objects)
    (spec,) = [s for s in pods(objects) if s["containers"][0]["name"] == "valkey"]
    (first,) = spec["initContainers"]
    assert environment(first)["SNAPSHOT"] == "masks-1.rdb"
    assert {"name": "backup", "persistentVolumeClaim": {"claimName": "backups"}} in spec["volumes"]
