"""A tiny random Llama as a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_model import save_tiny_llama


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bf16 checkpoint; not to be written to."""
    return save_tiny_llama(tmp_path_factory.mktemp("base"), torch.bfloat16)
