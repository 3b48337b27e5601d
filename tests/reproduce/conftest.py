"""A tiny checkpoint, and plans that take no fingerprint of the demo's model."""

from __future__ import annotations

from pathlib import Path

import pytest
from bmt_trainer.comparison import provenance

from tests.support.tiny_model import save_tiny_llama


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint; not to be written to."""
    return save_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def names_as_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of each entry would read the demo's model, or a test of a machine without it fail."""
    monkeypatch.setattr(provenance, "of_model", lambda model: model)
    monkeypatch.setattr(provenance, "sources_of_model", lambda model: model)
