"""Both masks of the demo on each precision of their base: right answers to the held-out questions.

The masks are trained on the 16-bit checkpoint, over three seeds; each copy is rounded to nearest,
without calibration, as a user's worst case.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from bmt_server.quantization.kinship import compare
from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.intervals import student, wilson
from bmt_trainer.evaluation.score import grade
from transformers import AutoTokenizer

from tests.support.engines import run_engine
from tests.support.programs import ROOT
from tests.support.quantized.copies import quantize
from tests.support.scenarios.figures import Figures, scaled

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.timeout(4 * 3600)]

SEEDS = range(scaled(3))
HELD_OUT = scaled(400, 20)
TOKENS = 24
TASKS = ("reverse", "sort")
#: bf16 is the checkpoint itself.
PRECISIONS = ("bf16", "int8", "fp8", "int4", "int4 with zeros", "awq", "gptq")


@dataclass(frozen=True)
class Trained:
    """A mask of the demo with questions that it has not seen."""

    task: str
    path: Path
    examples: list[Example]


@pytest.fixture(scope="module")
def masks(smol, tmp_path_factory) -> list[Trained]:
    folder = tmp_path_factory.mktemp("masks")
    return [_trained(smol, folder, task, seed) for task in TASKS for seed in SEEDS]


def _trained(model: Path, folder: Path, task: str, seed: int) -> Trained:
    config = ROOT / "examples" / "demo" / f"{task}.yaml"
    path = folder / f"{task}-{seed}.bmt"
    command = [sys.executable, "-m", "bmt_trainer", "sft", "--config", str(config)]
    command += ["--model", str(model), "--output", str(path), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    settings = yaml.safe_load(config.read_text())
    split = sources.load(settings["dataset"], heldout=settings["heldout"], train=1, seed=seed)
    return Trained(task, path, split.heldout[:HELD_OUT])


def _right(answers: list[Any], examples: list[Example], tokenizer: Any) -> tuple[int, int]:
    """Right answers, and their number, of tokens up to the end of each answer."""
    texts = []
    for answer in answers:
        tokens = answer["tokens"]
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else None
        texts.append(tokenizer.decode(tokens[:end], skip_special_tokens=True))
    found = grade(texts, examples)
    return found.exact, found.total


@pytest.mark.parametrize("precision", PRECISIONS)
def test_accuracy_by_precision(smol, masks, tmp_path, precision):
    copy, job = smol, {"mode": "auto", "options": {"dtype": "bfloat16"}}
    if precision != "bf16":
        copy = quantize(smol, tmp_path / "copy", precision)
        family = tmp_path / "family.json"
        compare("base", str(smol), {"copy": str(copy)}, print).write(family)
        job["family"] = str(family)
    tokenizer = AutoTokenizer.from_pretrained(smol)
    asked = [
        [
            tokenizer.apply_chat_template(
                list(example.prompt), add_generation_prompt=True, return_dict=False
            )
            for example in one.examples
        ]
        for one in masks
    ]
    parts = [
        {"prompts": prompts, "masks": [mask] * len(prompts), "generate": TOKENS}
        for one, prompts in zip(masks, asked, strict=True)
        for mask in (str(one.path), None)
    ]
    paths = [str(one.path) for one in masks]
    answers = run_engine(
        "answer.py", {**job, "model": str(copy), "masks": paths, "parts": parts}, tmp_path
    )
    figures = Figures("precision", "test_accuracy_by_precision")
    name = precision.replace(" ", "_")
    counts = {}
    for number, one in enumerate(masks):
        for what, own in (("mask", answers[2 * number]), ("base", answers[2 * number + 1])):
            counts.setdefault((one.task, what), []).append(_right(own, one.examples, tokenizer))
    for (task, what), found in counts.items():
        shares = [100 * right / total for right, total in found]
        low, high = student(shares)
        if what == "base":
            pooled = [sum(numbers) for numbers in zip(*found, strict=True)]
            low, high = (100 * share for share in wilson(*pooled))
        figures.record(
            f"{name}_{task}_{what}",
            sum(shares) / len(shares),
            "%",
            size=f"{len(found)} masks, {HELD_OUT} questions each",
            note=f"{max(0.0, low):.1f} to {min(100.0, high):.1f}",
        )
    figures.end()
