"""Evaluation backend on vLLM: base and mask on one engine give the outputs of transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import bmt_core
import pytest
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.backends import by_transformers, by_vllm

from tests.support.engines import PROMPTS, TIMEOUT_S
from tests.support.masks import random_mask_of

pytestmark = pytest.mark.engine

ASKED = PROMPTS[:12]
TOKENS = 6
# A separate process, like the command, because masks configure the whole process.
CHILD = """
import json, sys
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.evaluation.backends import by_vllm
model, mask, asked, tokens = json.loads(sys.argv[1])
models = by_vllm(model, mask, batch_size=8)
examples = [Example(chat(text), "") for text in asked]
print(json.dumps({who: answer(examples, tokens) for who, answer in models.items()}))
"""


@pytest.mark.slow
def test_base_and_mask_match_transformers(smol, tmp_path):
    mask = tmp_path / "m.bmt"
    bmt_core.save(random_mask_of(smol, 0, sparsity=0.1), mask)
    job = json.dumps([str(smol), str(mask), ASKED, TOKENS])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, job],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)  # and no other output, because programs read it
    here = by_transformers(str(smol), mask, batch_size=8, device="cpu")
    examples = [Example(chat(text), "") for text in ASKED]
    for who, answer in here.items():
        same = sum(a == b for a, b in zip(answer(examples, TOKENS), found[who], strict=True))
        # Another order of sums may change a tie.
        assert same >= 0.75 * len(ASKED), (who, same)
    assert sum(a != b for a, b in zip(found["base"], found["mask"], strict=True)) > 3


def test_another_bases_mask_is_refused_before_the_engine_starts(smol, tmp_path):
    mask = random_mask_of(smol, 0)
    base = bmt_core.Base("other", "0" * len(mask.base.fingerprint))
    bmt_core.save(bmt_core.Mask(base, mask.tensors, {}), tmp_path / "m.bmt")
    with pytest.raises(bmt_core.BaseMismatch):
        by_vllm(str(smol), tmp_path / "m.bmt", batch_size=8)


def test_without_vllm_the_error_names_the_alternative(monkeypatch):
    monkeypatch.setattr(
        "bmt_trainer.evaluation.backends.importlib.util.find_spec", lambda name: None
    )
    with pytest.raises(ConfigError, match="--engine transformers"):
        by_vllm("nowhere", None, batch_size=8)
