"""Two versions of vLLM answer alike: the same tokens for the base and for two masks.

`make test-vllm VERSION=…` runs it with the other version's Python; nothing else knows of one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient

from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]

OTHER = os.environ.get("BMT_OTHER_PYTHON", "")
MODELS = ("smol", "m0", "m1")
TOKENS = 16
PROMPTS = [
    f"{start} {topic}"
    for start in ("The history of", "In the morning, she saw", "The best way to cook")
    for topic in ("the sea", "bread", "a small dog", "winter")
]


def vllm_of(python: str) -> str:
    code = "import vllm; print(vllm.__version__)"
    return subprocess.check_output([python, "-c", code], text=True).split()[-1]


def answers(python: str, smol: Path, folder: Path) -> dict[str, list[Any]]:
    """Tokens of each prompt, by model; one request at a time, so that steps are the same."""
    folder.mkdir()
    served = Served(
        smol,
        folder,
        *("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "8"),
        env={"VLLM_TARGET_DEVICE": "cpu"},
        program=(python, "-m", "bmt_server"),
        wait=False,
    )
    try:
        # The first start after an installation compiles Python's files.
        served.wait(600)
        with BmtClient(served.url, served.key) as bmt:
            for seed in (0, 1):
                mask = random_mask_of(smol, seed, 0.02)
                bmt.upload(bmt_core.encode(mask), name=f"m{seed}")
        return {model: [complete(served, model, p) for p in PROMPTS] for model in MODELS}
    finally:
        assert served.stop() in (0, -15), served.log.read_text()[-2000:]


def complete(served: Served, model: str, prompt: str) -> list[str]:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
    answer = httpx2.post(
        f"{served.url}/v1/completions",
        json={**body, "ignore_eos": True},
        headers=served.headers,
        timeout=300,
    )
    answer.raise_for_status()
    tokens: list[str] = answer.json()["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == TOKENS
    return tokens


@pytest.mark.skipif(not OTHER, reason="make test-vllm VERSION=… names the other version's Python")
def test_two_versions_answer_the_same_tokens(smol, tmp_path):
    figures = Figures("vllm_versions")
    here, there = vllm_of(sys.executable), vllm_of(OTHER)
    assert here != there
    ours = answers(sys.executable, smol, tmp_path / "here")
    theirs = answers(OTHER, smol, tmp_path / "there")
    pairs = [(a, b) for m in MODELS for a, b in zip(ours[m], theirs[m], strict=True)]
    same = sum(a == b for a, b in pairs)
    size = f"{len(PROMPTS)} prompts x {TOKENS} tokens, base and two masks, vLLM {here} and {there}"
    figures.record("same_answers", same, "answers", f"== {len(pairs)}", size=size)
    # Otherwise equal answers would not show that the masks were applied.
    masked = sum(a != b for m in MODELS[1:] for a, b in zip(ours["smol"], ours[m], strict=True))
    figures.record("masked_answers_unlike_the_base", masked, "answers", ">= 12", size=size)
    figures.end()
