"""Masked checkpoints of every architecture, as transformers loads them."""

from __future__ import annotations

import bmt_core
import pytest
import torch
from bmt_trainer.masking.apply import write_checkpoint
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.export import export
from bmt_trainer.masking.targets import GATE_PROJECTIONS
from bmt_trainer.models import base_of, load_model
from transformers import AutoModelForCausalLM

from tests.support.training.architectures import DENSE, PARTLY_DENSE, small_config


@pytest.mark.found
@pytest.mark.parametrize(
    ("kind", "changes", "gates"),
    [*((kind, {}, 4) for kind in DENSE), *PARTLY_DENSE],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_tensor_is_the_bases_with_its_zeros(kind, changes, gates, tmp_path):
    torch.manual_seed(0)
    config = small_config(kind, **changes)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base, out = tmp_path / "base", tmp_path / "out"
    made.save_pretrained(base, max_shard_size="20KB")
    attached = attach(load_model(base), GATE_PROJECTIONS)
    assert len(attached.layers) == gates
    with torch.no_grad():
        for gate in attached.gates():
            gate.copy_(torch.rand(gate.shape) - 0.1)
    mask = export(attached, base_of(base, base), geometry=bmt_core.geometry(base))
    write_checkpoint(mask, base, out)
    expected = dict(load_model(base).state_dict())
    for tensor in mask.tensors:
        flat = expected[tensor.name].view(-1)
        positions = torch.from_numpy(tensor.positions.astype("int64"))
        assert len(positions) > 50
        assert flat[positions].abs().min() > 0
        flat[positions] = 0
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value), name
