"""The command and environment of a server's worker, and servers that cannot have one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bmt_server.settings import SettingsError
from bmt_server.training import plan as plan_module
from bmt_server.training.plan import address_of, check_training, plan_of


def test_the_worker_gets_the_server_and_none_of_its_secrets():
    environment = {
        **{"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "HTTPS_PROXY": "http://p"},
        **{"BMT_REGISTRY": "redis://:secret@h", "AWS_SECRET_ACCESS_KEY": "secret"},
    }
    made = plan_of("/m", Path("/d/worker"), "--max-length 64", ("[::1]", 8000), environment)
    words = " ".join(made.command)
    assert "worker --server http://[::1]:8000 --model /m --folder /d/worker --device cpu" in words
    assert words.endswith("--max-length 64")
    assert made.environment == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}
    chosen = plan_of("/m", Path("/d"), "--device=cuda --folder '/a b'", ("h", 1), {}).command
    assert chosen[-3:] == ("--device=cuda", "--folder", "/a b")
    assert "cpu" not in chosen
    assert "/d" not in chosen


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        (None, "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("10.1.2.3", "10.1.2.3"),
        ("localhost", "localhost"),
    ],
)
def test_a_worker_reaches_the_address_that_the_server_listens_on(host, reached):
    assert address_of(host, 8000, socket=None, tls=False) == (reached, 8000)


@pytest.mark.parametrize("given", [{"socket": "/s", "tls": False}, {"socket": None, "tls": True}])
def test_a_server_without_a_port_of_plain_http_has_no_worker(given):
    with pytest.raises(SettingsError, match="bmt-train worker --server URL"):
        address_of(None, 8000, **given)


@pytest.mark.parametrize("flag", ["--server", "--model=x", "--once", "cuda", "'"])
def test_flags_that_the_server_decides_are_refused(flag):
    with pytest.raises(SettingsError, match="--train-flags"):
        check_training("file:///f", f"--device cpu {flag}" if flag != "cuda" else flag)


def test_packages_of_the_trainer_are_named(monkeypatch):
    monkeypatch.setattr(plan_module, "_NEEDED", {"no_such_package": "trainer"})
    with pytest.raises(SettingsError, match=r"pip install 'bmt-adapters\[trainer\]'"):
        check_training("file:///f", "")


def test_a_server_without_files_ends_with_a_line(tmp_path):
    """Before it reads a model or imports an engine."""
    done = subprocess.run(
        [sys.executable, "-m", "bmt_server", "serve", "m", "--train"],
        env={"PATH": "/bin", "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "add --files" in done.stderr
