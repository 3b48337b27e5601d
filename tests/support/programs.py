"""Programs that tests run, which `make tools` fetches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """A program's path; the test skips by its name where it is not there."""
    ours = ROOT / ".bmt" / "tools" / name
    found = str(ours) if ours.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not there; `make tools` fetches it")
    return found
