"""The README's commands from `make setup` on, in a clone; long trainings on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import bmt_core
import pytest
import torch

from tests.support.pages import shell
from tests.support.pages.blocks import ROOT, Block
from tests.support.pages.coverage import readme
from tests.support.tiny_model import save_tiny_llama

pytestmark = [pytest.mark.operate, pytest.mark.timeout(5400)]


def starting(*words: str) -> list[Block]:
    found = [b for b in readme() if b.text.startswith(words)]
    assert len(found) == len(words)
    return found


def test_the_quick_start(tmp_path: Path):
    """Set up, train, serve, upload, chat, curl, and the client in Python."""
    clone = tmp_path / "bmt-adapters"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    given = starting("make setup &&", "curl -s http", "from bmt_client import")
    server, answers, _ = shell.run(given, clone, {"BMT_DEVICE": "cpu"})
    print(server, answers)
    assert "reverse@" in server
    assert json.JSONDecoder().raw_decode(answers.lstrip())[0]["model"].startswith("reverse@")
    assert bmt_core.load(clone / "reverse.bmt").zeros


def test_the_lines_of_training(tmp_path: Path):
    """The lines are the page's; `MODEL` is a tiny model, `chats.jsonl` the reader's own file."""
    folder = shell.checkout(tmp_path / "checkout")
    # vLLM's attention on CPUs has no heads of 16.
    model = save_tiny_llama(tmp_path / "model", torch.bfloat16, hidden_size=128)
    rows = [{"prompt": f"{n} and {n}?", "completion": str(2 * n)} for n in range(500)]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    environment = {**os.environ, "MODEL": str(model), "BMT_DEVICE": "cpu"}
    (said,) = shell.run(starting("bmt-train data chats.jsonl"), folder, environment)
    print(said)
    for name in ("mine", "sums", "sums-sdft", "order"):
        assert bmt_core.load(folder / f"{name}.bmt").zeros
