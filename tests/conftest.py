"""Fixtures for all packages: the real model, checkpoints made from it, and quiet threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines last: what fails fast should fail first."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)


@pytest.fixture(scope="session")
def smol() -> Path:
    """The real model, SmolLM2-135M-Instruct, as a bf16 checkpoint."""
    sys.path.insert(0, str(ROOT / "examples" / "demo"))
    from model import FOLDER, build

    if not (FOLDER / "model.safetensors").exists():
        build(FOLDER)
    return FOLDER
