"""What is made of vLLM's record of a step."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bmt_server.api.engine_vllm import step_hooks
from bmt_server.api.engine_vllm.heartbeat import Pulse
from bmt_server.ipc.stats_files import WaitingMasks
from bmt_server.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(
        model_id="m", model_path="m", fingerprint="sha256:0", gates={}, stats_dir=str(tmp_path)
    )


def waits(*names: str) -> SimpleNamespace:
    """vLLM's figures of a step in which these masks wait."""
    return SimpleNamespace(waiting_lora_adapters=dict.fromkeys(names, 1))


def told(settings: Settings, wanted: list[str]) -> None:
    """Others of the server hear that these wait, within a moment."""
    deadline = time.monotonic() + 10
    while WaitingMasks.latest(settings.stats_dir) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert WaitingMasks.latest(settings.stats_dir) == wanted


def test_a_step_is_a_sign_of_life_whoever_is_told_its_figures(settings):
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    with pulse.call():
        now[0] = 7.0
        assert pulse.still_s() == 7.0
        step_hooks.Steps(settings, pulse).record(None)
        assert pulse.still_s() == 0.0
    assert WaitingMasks.latest(settings.stats_dir) == []


def test_the_newest_word_of_any_process_counts(settings):
    steps = step_hooks.Steps(settings, Pulse())
    steps.record(waits("a@1", "b@2"))
    told(settings, ["a@1", "b@2"])
    other = WaitingMasks(at=1.0, names=["old@1"])
    other.write(settings.stats_dir, 1)
    assert WaitingMasks.latest(settings.stats_dir) == ["a@1", "b@2"]
    steps.record(waits())
    told(settings, [])


def test_nothing_is_written_where_there_is_no_folder_for_it(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step_hooks.Steps(replace(settings, stats_dir=""), Pulse()).record(waits("a@1"))
    time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []
