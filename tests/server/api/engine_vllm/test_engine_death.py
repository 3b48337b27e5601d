"""What the API is told of the engine's end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bmt_server.api.engine_vllm.engine import EngineBridge
from bmt_server.api.engine_vllm.heartbeat import Pulse
from bmt_server.settings import Settings


@pytest.fixture
def client() -> Any:
    """vLLM's client as far as the bridge asks it: `errored` is also true of one that was ended."""
    made = SimpleNamespace(
        errored=False,
        vllm_config=SimpleNamespace(
            parallel_config=SimpleNamespace(world_size=1, data_parallel_size=1)
        ),
    )

    def shutdown(timeout: float | None = None) -> float | None:
        made.errored = True
        return timeout

    made.shutdown = shutdown
    return made


def bridge(client: Any, folder: Path) -> EngineBridge:
    settings = Settings(
        model_id="m", model_path="m", fingerprint="ab" * 32, gates={}, stats_dir=str(folder)
    )
    return EngineBridge(client, SimpleNamespace(), settings, Pulse())


def test_an_engine_that_ends_by_itself_has_died(client, tmp_path):
    one = bridge(client, tmp_path)
    assert not one.died
    client.errored = True
    assert one.died


def test_one_that_was_told_to_end_has_not(client, tmp_path):
    one = bridge(client, tmp_path)
    assert client.shutdown(timeout=3) == 3, "vLLM's own is called as before"
    assert client.errored
    assert not one.died
