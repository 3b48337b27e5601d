"""Families of docs/training/models.md in real engines, against their masked checkpoints.

A tiny random model of each; greedy answers with a mask, and of the base in the same batch, equal
those of transformers on the checkpoint with the same zeros, and on the base, token for token.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bmt_core
import httpx2
import pytest
import torch
from bmt_trainer.masking.apply import write_checkpoint
from bmt_trainer.models import architecture_of, load_model

from tests.support.engines import run_engine
from tests.support.masks import random_mask_of
from tests.support.served import Served
from tools.models.configurations import ENGINE_SIZES, tiny
from tools.models.image_library import ROOT, environment

# An engine of its own for each family.
pytestmark = [pytest.mark.operate, pytest.mark.engine]

VOCABULARY = 320
TOKENS = 12
#: `model_type`s: each shape of the table. Two places are left for models of experts.
FAMILIES = (
    *("gemma3", "qwen2_5_vl", "qwen3_vl", "mistral3"),  # loaded for their text
    *("gemma2", "cohere2", "olmo2", "glm4", "granite", "stablelm"),
)
OPTIONS = {"enforce_eager": True, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """Variables with which a process can import torchvision, as the classes of some do."""
    return environment()


def checkpoint(kind: str, folder: Path, images: dict[str, str]) -> Path:
    """A random checkpoint, with weights large enough for a mask to change what they answer."""
    torch.manual_seed(0)
    config = tiny(kind, **ENGINE_SIZES, vocab_size=VOCABULARY)
    model = architecture_of(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(folder)
    # transformers' processors of images and videos need the image library as well.
    command = [sys.executable, "-m", "tools.models.processors", kind, str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **images}, check=True)
    return folder


def greedy(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Answers of `TOKENS` tokens by transformers, each step over the whole text."""
    model = load_model(folder, fp32=True).eval()
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(TOKENS):
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_answers_as_its_masked_checkpoint(kind, tmp_path, images):
    base, masked = checkpoint(kind, tmp_path / "base", images), tmp_path / "masked"
    mask = random_mask_of(base, 0, sparsity=0.3)
    path = tmp_path / "m.bmt"
    bmt_core.save(mask, path)
    write_checkpoint(mask, base, masked)
    prompts = torch.randint(3, 259, (3, 9)).tolist()
    part = {
        **{"prompts": [*prompts, *prompts], "masks": [str(path)] * 3 + [None] * 3},
        **{"generate": TOKENS},
    }
    job = {"model": str(base), "mode": "delta", "options": OPTIONS, "masks": [str(path)]}
    (answers,) = run_engine("answer.py", {**job, "parts": [part]}, tmp_path, images)
    tokens = [answer["tokens"] for answer in answers]
    expected, plain = greedy(masked, prompts), greedy(base, prompts)
    assert tokens[:3] == expected
    assert tokens[3:] == plain
    assert all(a != b for a, b in zip(expected, plain, strict=True)), "the mask changes nothing"


def test_a_base_that_reads_images_is_served_as_text(tmp_path, images):
    """Its tower is not loaded, and a request with an image is refused before any is read."""
    base = checkpoint("gemma3", tmp_path / "base", images)
    mask = random_mask_of(base, 0, sparsity=0.045)
    served = Served(
        base, tmp_path, "--enforce-eager", "--dtype", "float32", "--max-model-len", "64", env=images
    )
    try:
        with httpx2.Client(base_url=served.url, headers=served.headers, timeout=120) as client:
            stored = client.put("/v1/masks/m", content=bmt_core.encode(mask))
            assert stored.status_code < 300, stored.text

            def ask(model: str, *parts: dict) -> httpx2.Response:
                content = [{"type": "text", "text": "Say"}, *parts]
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
                body |= {"model": model, "temperature": 0, "ignore_eos": True, "logprobs": True}
                return client.post("/v1/chat/completions", json=body)

            base_says, mask_says = (
                ask(model).raise_for_status().json()["choices"][0]["logprobs"]["content"]
                for model in ("smol", "m")
            )
            assert [t["logprob"] for t in base_says] != [t["logprob"] for t in mask_says]
            for url in ("http://127.0.0.1:9/a.png", "data:image/png;base64,AA==", "file:///a.png"):
                refused = ask("m", {"type": "image_url", "image_url": {"url": url}})
                assert refused.status_code == 400
                error = refused.json()["error"]
                assert "text only" in error["message"]
                assert "\n" not in error["message"]
    finally:
        served.stop()
    assert "running in text-only mode" in served.log.read_text()
