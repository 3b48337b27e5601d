"""Processes of a server end with the one that started them, and ignore signals without a use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bmt_server.vllm_integration.process_lifetime import IGNORED

from tests.support.children import process_tree
from tests.support.served import until

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def tree(top: str) -> Iterator[dict[str, int]]:
    """Process ids by name, of a tree with `top` at its root."""
    names = [top]
    while below := process_tree.BELOW.get(names[-1]):
        names.append(below)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.children.process_tree", top],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = {}
    try:
        for line in process.stdout:
            name, pid = line.split()
            pids[name] = int(pid)
            if len(pids) == len(names):
                break
        assert list(pids) == names
        yield pids
    finally:
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.found
@pytest.mark.parametrize(
    ("top", "killed"),
    [("api", "api"), ("api", "engine"), ("launcher", "launcher"), ("launcher", "api")],
)
def test_what_is_below_a_killed_process_ends(top, killed):
    with tree(top) as pids:
        os.kill(pids[killed], signal.SIGKILL)
        below = list(pids)[list(pids).index(killed) :]
        until(lambda: not any(alive(pids[name]) for name in below), 10)
        above = [name for name in pids if name not in below]
        assert all(alive(pids[name]) for name in above)


def test_a_parent_that_ended_before_the_child_watched(tmp_path):
    """As by `kill -9` while the child imports vLLM."""
    with tree("api") as pids:
        os.kill(pids["engine"], signal.SIGSTOP)
        os.kill(pids["api"], signal.SIGKILL)
        time.sleep(0.2)
        os.kill(pids["engine"], signal.SIGCONT)
        until(lambda: not alive(pids["engine"]) and not alive(pids["worker"]), 10)


@pytest.mark.parametrize("one", IGNORED, ids=lambda s: s.name)
def test_these_signals_end_no_process(one):
    with tree("api") as pids:
        for pid in pids.values():
            os.kill(pid, one)
        time.sleep(1)
        assert all(alive(pid) for pid in pids.values())


def test_a_terminal_reaches_the_api_process_alone():
    with tree("api") as pids:
        assert os.getpgid(pids["api"]) == pids["api"]
        assert os.getpgid(pids["engine"]) != pids["api"]
        assert os.getpgid(pids["worker"]) not in (pids["api"], pids["engine"])
