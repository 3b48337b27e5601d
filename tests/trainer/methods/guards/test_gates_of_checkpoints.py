"""Gates of a run's checkpoint, which are read by their names, all of them."""

from __future__ import annotations

import pytest
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
        with pytest.raises(ResumeError, match=r"lacks \d of the run's gates, model\.layers"):
            trainer.__new__(trainer)._load_from_checkpoint(str(tmp_path))
