"""Requests of `masked_llm` after its base weights were replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import bmt_core
import pytest
from bmt_server import offline
from bmt_server.ipc.stats_files import WorkerStats
from bmt_server.settings import ENV, Settings
from vllm.lora.request import LoRARequest

from tests.support.masks import BASE, make_mask


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    made = Settings(
        model_id="m",
        model_path="m",
        fingerprint=BASE.fingerprint,
        gates={},
        stats_dir=str(tmp_path),
    )
    monkeypatch.setenv(ENV, made.to_json())
    return made


@pytest.mark.found
def test_masks_are_refused_by_name_until_the_base_is_known_again(settings):
    """By `mask_request`, and for requests that were made before, outside of the engine's step."""
    added: list[tuple] = []
    engine = SimpleNamespace(add_request=lambda *a, **k: added.append((a, k)))
    offline._check_requests(engine)
    mask = make_mask(1)
    request = offline.mask_request(mask, "math")
    engine.add_request("1", "prompt", lora_request=request)
    WorkerStats(pid=1, base_error="the base weights were replaced (x)").write(settings.stats_dir, 1)
    with pytest.raises(bmt_core.BaseMismatch, match="replaced"):
        offline.mask_request(mask, "math")
    with pytest.raises(bmt_core.BaseMismatch, match="replaced"):
        engine.add_request("2", "prompt", lora_request=request)
    with pytest.raises(bmt_core.BaseMismatch, match="replaced"):
        engine.add_request("3", "prompt", LoRARequest("other@0123456789ab", 7, "/x"))
    engine.add_request("4", "prompt", lora_request=None)
    WorkerStats(pid=1).write(settings.stats_dir, 1)
    engine.add_request("5", "prompt", lora_request=request)
    assert [a[0] for a, _ in added] == ["1", "4", "5"]


def test_a_worker_that_has_ended_refuses_nothing(settings):
    """Its file outlives a `masked_llm` whose base was replaced; the next one has the base."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    WorkerStats(pid=ended.pid, base_error="replaced").write(settings.stats_dir, ended.pid)
    offline.mask_request(make_mask(1), "math")
    WorkerStats(pid=os.getpid(), base_error="replaced").write(settings.stats_dir, os.getpid())
    with pytest.raises(bmt_core.BaseMismatch, match="replaced"):
        offline.mask_request(make_mask(1), "math")
