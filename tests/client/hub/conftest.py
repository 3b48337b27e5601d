"""A Hub on loopback that the library of this process asks, and a mask's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bmt_core
import pytest

from tests.support.http.hub import Hub, running_hub, use
from tests.support.masks import SCORE, make_mask


@pytest.fixture
def hub(monkeypatch, tmp_path_factory) -> Iterator[Hub]:
    with running_hub() as made:
        use(made, monkeypatch, tmp_path_factory.mktemp("hub"))
        yield made


@pytest.fixture
def math(tmp_path, monkeypatch) -> Path:
    """`math.bmt` in the current folder, with metadata as the trainer writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BMT_URL", "not an address")
    mask = make_mask(0, method="sft", dataset="task:reverse", scores={"mask": SCORE})
    bmt_core.save(mask, tmp_path / "math.bmt")
    return tmp_path / "math.bmt"
