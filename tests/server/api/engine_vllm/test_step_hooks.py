"""Recording of vLLM's steps: heartbeat and waiting masks."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.step_hooks import StepRecorder
from bmt_server.ipc.stats_files import WaitingMasks
from bmt_server.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(
        model_id="m", model_path="m", fingerprint="sha256:0", gates={}, stats_dir=str(tmp_path)
    )


def waits(*names: str) -> SimpleNamespace:
    """Scheduler stats of a step in which these masks wait."""
    return SimpleNamespace(waiting_lora_adapters=dict.fromkeys(names, 1))


def wait_until_published(settings: Settings, names: list[str]) -> None:
    """Other processes read these names as waiting, within seconds."""
    deadline = time.monotonic() + 10
    while WaitingMasks.latest(settings.stats_dir) != names and time.monotonic() < deadline:
        time.sleep(0.02)
    assert WaitingMasks.latest(settings.stats_dir) == names


def test_a_step_without_stats_is_a_heartbeat(settings):
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    with heartbeat.track_call():
        now[0] = 7.0
        assert heartbeat.silent_s() == 7.0
        StepRecorder(settings, heartbeat).record(None)
        assert heartbeat.silent_s() == 0.0
    assert WaitingMasks.latest(settings.stats_dir) == []


def test_the_newest_file_of_any_process_counts(settings):
    steps = StepRecorder(settings, Heartbeat())
    steps.record(waits("a@1", "b@2"))
    wait_until_published(settings, ["a@1", "b@2"])
    other = WaitingMasks(at=1.0, names=["old@1"])
    other.write(settings.stats_dir, 1)
    assert WaitingMasks.latest(settings.stats_dir) == ["a@1", "b@2"]
    steps.record(waits())
    wait_until_published(settings, [])


def test_nothing_is_written_without_a_stats_folder(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StepRecorder(replace(settings, stats_dir=""), Heartbeat()).record(waits("a@1"))
    time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []
