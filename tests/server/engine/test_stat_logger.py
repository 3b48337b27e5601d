"""What is made of vLLM's record of a step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bmt_server import stats_file, waiting
from bmt_server.engine import stat_logger
from bmt_server.settings import Settings


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Steps that were heard of, and the settings of a process that heard none before."""
    heard: list[None] = []
    monkeypatch.setattr(stat_logger, "stepped", lambda: heard.append(None))
    monkeypatch.setattr(stat_logger, "_told", 0.0)
    monkeypatch.setattr(stat_logger.time, "monotonic", lambda: 100.0 + len(heard))
    settings = Settings(
        model_id="m", model_path="m", fingerprint="sha256:0", gates={}, stats_dir=str(tmp_path)
    )
    return heard, settings


def test_a_step_is_a_sign_of_life_whoever_is_told_its_figures(steps):
    heard, settings = steps
    stat_logger.record(None, settings)
    assert len(heard) == 1
    assert waiting.latest(settings.stats_dir) == []


def test_the_newest_word_of_any_process_counts(steps):
    heard, settings = steps
    stat_logger.record(SimpleNamespace(waiting_lora_adapters={"a@1": 1, "b@2": 3}), settings)
    assert waiting.latest(settings.stats_dir) == ["a@1", "b@2"]
    other = waiting.Waiting(at=1.0, names=["old@1"])
    stats_file.write(Path(settings.stats_dir) / "waiting-1.json", other)
    assert waiting.latest(settings.stats_dir) == ["a@1", "b@2"]
    stat_logger.record(SimpleNamespace(waiting_lora_adapters={}), settings)
    assert waiting.latest(settings.stats_dir) == []
