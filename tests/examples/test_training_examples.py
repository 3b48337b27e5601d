"""Examples of training, run as they stand on a tiny model."""

from __future__ import annotations

from pathlib import Path

import bmt_core
import pytest
import torch

from tests.support.tiny_model import save_tiny_llama
from tests.support.training import forked

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("script", ["train_sft.py", "train_grpo.py"])
def test_it_writes_a_mask(script, tmp_path):
    model, output = tmp_path / "model", tmp_path / "m.bmt"
    save_tiny_llama(model, torch.bfloat16)
    done = forked.run([EXAMPLES / script, model, output, 2], timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    mask = bmt_core.load(output)
    assert f"{mask.zeros:,} zeros" in done.stdout


def test_examples_are_short():
    """Each is read in a minute."""
    lines = {p.name: len(p.read_text().splitlines()) for p in EXAMPLES.glob("*.py")}
    assert lines
    assert {name: n for name, n in lines.items() if n > 45} == {}
