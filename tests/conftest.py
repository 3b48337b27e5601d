"""Fixtures for all packages: the real model, the demo's modules, and an environment of our own."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # as bmt-server sets it, see cpu_env.py
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# Importing TRL sets it to ERROR where it is not set, and servers started later would inherit that.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
# Shells let what they start in the background ignore Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What the developer's own shell is set up for is not the tests': a registry, a server, a key.
for name in ("BMT_URL", "BMT_API_KEY", "BMT_REGISTRY", "BMT_DATA_DIR", "BMT_SERVER_SETTINGS"):
    os.environ.pop(name, None)
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines last: what fails fast should fail first."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)


@pytest.fixture(scope="session")
def smol() -> Path:
    """The real model, SmolLM2-135M-Instruct, as a bf16 checkpoint."""
    spec = importlib.util.spec_from_file_location("bmt_demo_model", DEMO / "model.py")
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    if not (model.FOLDER / "model.safetensors").exists():
        model.build(model.FOLDER)
    return model.FOLDER
