"""A real server's processes: signals that an operator sends, `kill -9`, a registry that is away."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
from bmt_server.vllm_integration.process_lifetime import IGNORED

from tests.support.scenarios.nodes import Node
from tests.support.scenarios.processes import family
from tests.support.served import Served, until

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.found]

TOKENS = 150
FLAGS = ("--enforce-eager", "--shutdown-timeout", "120")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_start_without_a_registry_and_a_stop_by_ctrl_c(smol, tmp_path):
    registry = Node(tmp_path / "r", ("--appendonly", "yes"))
    served = Served(smol, tmp_path, *FLAGS, registry=registry.url, wait=False)
    try:
        until(lambda: "does not answer" in served.log.read_text(), 60)
        registry.start()
        served.wait()
        log = served.log.read_text()
        assert "Traceback" not in log
        processes = family(served.process.pid)
        used = 0
        body = {"model": "smol", "prompt": "The sun", "max_tokens": TOKENS, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with (
            httpx2.Client(base_url=served.url, headers=served.headers, timeout=60) as client,
            client.stream("POST", "/v1/completions", json=body) as stream,
        ):
            lines = (json.loads(x[6:]) for x in stream.iter_lines() if x.startswith("data: {"))
            for count, event in enumerate(lines):
                used = (event.get("usage") or {}).get("completion_tokens", used)
                if count == 5:
                    # As a closed terminal and Ctrl-C send them: to the foreground group.
                    for one in (*IGNORED, signal.SIGINT):
                        os.killpg(served.process.pid, one)
        assert used == TOKENS
        assert served.process.wait(60) == 0
        until(lambda: not any(alive(pid) for pid in processes), 10)
    finally:
        served.stop()
        registry.kill()


def test_nothing_is_left_of_a_killed_server(smol, tmp_path):
    served = Served(smol, tmp_path, *FLAGS)
    try:
        processes = family(served.process.pid)
        assert len(processes) >= 3  # with the engine and the embedded registry
        served.process.kill()
        killed = time.monotonic()
        until(lambda: not any(alive(pid) for pid in processes), 10)
        assert time.monotonic() - killed < 10
    finally:
        served.stop()
