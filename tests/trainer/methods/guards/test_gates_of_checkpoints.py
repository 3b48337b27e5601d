"""Gates of a run's checkpoint, which are read by their names, all of them."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.errors import ResumeError
from bmt_trainer.masking.attach import attach
from bmt_trainer.methods.guards.sharded import ShardedCheckpoints
from safetensors.torch import save_file

from tests.support.tiny_model import tiny_llama


@pytest.mark.found
def test_a_checkpoint_that_lacks_gates_is_not_resumed_from(tmp_path):
    model = tiny_llama()
    attached = attach(model)
    trainer = type("Trainer", (ShardedCheckpoints,), {"attached": attached})
    kept = {f"{name}.gate_logits": m.gate_logits.detach() for name, m in attached.layers.items()}
    other = {f"language_model.{name}": gate for name, gate in kept.items()}
    for tensors in (other, {}, dict(list(kept.items())[:1])):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ResumeError, match=r"lacks \d of the run's gates, model\.layers") as e:
            trainer.__new__(trainer)._load_from_checkpoint(str(tmp_path))
        # With overwrite the run would not start over: its folder is in the way.
        assert f"remove {tmp_path.parent} to start over" in str(e.value)


@pytest.mark.found
def test_gates_of_other_shapes_are_not_repeated(tmp_path):
    model = tiny_llama()
    attached = attach(model)
    trainer = type("Trainer", (ShardedCheckpoints,), {"attached": attached})
    kept = {f"{name}.gate_logits": m.gate_logits.detach() for name, m in attached.layers.items()}
    *_, name = kept
    for shape in ((), (1,), (1, kept[name].shape[1]), (3, 3)):
        other = {n: torch.full_like(gate, -1.0) for n, gate in kept.items()}
        save_file({**other, name: torch.full(shape, -1.0)}, tmp_path / "model.safetensors")
        with pytest.raises(ResumeError, match=rf"{name} of \[.*\], and the run's is of"):
            trainer.__new__(trainer)._load_from_checkpoint(str(tmp_path))
    assert attached.closed == 0  # none is set before all are looked at


@pytest.mark.found
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 16])
def test_a_file_of_gates_that_cannot_be_read(content, tmp_path):
    trainer = type("Trainer", (ShardedCheckpoints,), {"attached": attach(tiny_llama())})
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ResumeError, match=r"model\.safetensors cannot be read"):
        trainer.__new__(trainer)._load_from_checkpoint(str(tmp_path))
