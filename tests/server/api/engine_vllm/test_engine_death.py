"""Detection of an engine that died, as opposed to one that was shut down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bmt_server.api.engine_vllm.engine import VllmEngine
from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.settings import Settings


@pytest.fixture
def client() -> Any:
    """The part of vLLM's client that VllmEngine uses; a shutdown sets `errored` too."""
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


def engine(client: Any, folder: Path) -> VllmEngine:
    settings = Settings(
        model_id="m", model_path="m", fingerprint="ab" * 32, gates={}, stats_dir=str(folder)
    )
    return VllmEngine(client, SimpleNamespace(), settings, Heartbeat())


def test_an_engine_that_ends_by_itself_has_died(client, tmp_path):
    one = engine(client, tmp_path)
    assert not one.died
    client.errored = True
    assert one.died


def test_an_engine_that_was_shut_down_has_not_died(client, tmp_path):
    one = engine(client, tmp_path)
    assert client.shutdown(timeout=3) == 3, "vLLM's own is called as before"
    assert client.errored
    assert not one.died
