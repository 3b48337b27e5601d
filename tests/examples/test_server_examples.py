"""Examples of clients, run as they stand on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bmt_core
import pytest

from tests.support.masks import random_mask_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.engine


def run(script: str, *arguments: str | Path, key: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        env={**os.environ, "BMT_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_upload_and_chat_and_openai_client(server, smol, tmp_path):
    mask = random_mask_of(smol, 5, 0.01)
    bmt_core.save(mask, tmp_path / "example.bmt")
    said = run("upload_and_chat.py", server.url, tmp_path / "example.bmt", "Hello", key=server.key)
    first, chat = said.split("\n", 1)
    assert first == f"example is now example@{mask.digest[:12]}"
    assert chat.strip()
    lines = run("openai_client.py", server.url, "Hello", key=server.key).splitlines()
    assert any(line.startswith("smol: ") for line in lines)
    assert any(line.startswith(f"example@{mask.digest[:12]}: ") for line in lines)


@pytest.mark.operate
def test_offline_inference(smol, tmp_path):
    bmt_core.save(random_mask_of(smol, 6, 0.1), tmp_path / "m.bmt")
    said = run("offline_inference.py", smol, tmp_path / "m.bmt", "The capital of France is")
    # vLLM's own log goes to stdout too.
    answers = dict(
        line.split(": ", 1) for line in said.splitlines() if line.startswith(("base: ", "mask: "))
    )
    assert set(answers) == {"base", "mask"}
    assert answers["base"] != answers["mask"]
