"""Text models of families of several inputs: trained under the names of their checkpoints."""

from __future__ import annotations

import re

import bmt_core
import pytest
import torch
from bmt_core.gates.geometry import in_tower
from bmt_trainer.masking.apply import apply, write_checkpoint
from bmt_trainer.masking.diagnosis import diagnose
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.sft import train
from bmt_trainer.models import architecture_of, load_model
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import byte_tokenizer, interrupt_after
from tests.support.training.display import quiet
from tools.models.configurations import tiny

# model_type; prefix of the layers in released checkpoints, and as transformers 5.19 saves them.
FAMILIES = [
    ("gemma3", "language_model.model.layers", "model.language_model.layers"),
    pytest.param(
        # Its towers are large in the smallest configuration too.
        *("gemma4", "model.language_model.layers", "model.language_model.layers"),
        marks=pytest.mark.operate,
    ),
    ("mistral3", "language_model.model.layers", "model.language_model.layers"),
    ("qwen3_5", "model.language_model.layers", "model.layers"),
]


def checkpoint_of(kind, folder, released, saved):
    """A tiny random checkpoint with the names that the family's released ones have."""
    torch.manual_seed(0)
    config = tiny(kind, vocab_size=259, max_position_embeddings=256)
    text = config.get_text_config()
    if getattr(text, "vocab_size_per_layer_input", None):  # Gemma 4's second embedding
        text.vocab_size_per_layer_input = 259
    architecture_of(config).from_config(config, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    own, new = saved.removesuffix("layers"), released.removesuffix("layers")
    renamed = {re.sub(f"^{re.escape(own)}", new, name): t for name, t in tensors.items()}
    save_file(renamed, file, {"format": "pt"})
    return folder


@pytest.mark.found
@pytest.mark.parametrize(("kind", "released", "saved"), FAMILIES)
def test_a_text_model_is_trained_and_applied_under_the_checkpoints_names(
    kind, released, saved, tmp_path
):
    folder = checkpoint_of(kind, tmp_path / "base", released, saved)
    config = SftConfig(
        model=str(folder),
        dataset="task:initials",
        output=tmp_path / "m.bmt",
        heldout=2,
        steps=2,
        batch_size=2,
        learning_rate=0.02,
        calibration_prompts=4,
        max_new_tokens=2,
        device="cpu",
        precision="fp32",
    )
    mask = train(config, quiet())
    assert mask.zeros > 0
    assert {t.name: t.shape for t in mask.tensors} == bmt_core.geometry(folder)
    assert all(t.name.startswith(released) for t in mask.tensors)
    assert not any(in_tower(t.name) for t in mask.tensors)
    assert diagnose(folder).not_served is None

    ids = torch.arange(3, 43).view(2, 20)
    masked = load_model(folder)
    apply(mask, masked, base_fingerprint=bmt_core.fingerprint(folder))
    written = load_model(write_checkpoint(mask, folder, tmp_path / "applied"))
    with torch.no_grad():
        logits = written(ids).logits
        assert torch.equal(masked(ids).logits, logits)
        assert not torch.equal(load_model(folder)(ids).logits, logits)


@pytest.mark.found
def test_a_run_resumes_where_transformers_saves_under_other_names(tmp_path, monkeypatch):
    folder = checkpoint_of("mistral3", tmp_path / "base", *FAMILIES[2][1:])

    def run(name, **changes):
        config = SftConfig(
            model=str(folder),
            dataset="task:initials",
            output=tmp_path / f"{name}.bmt",
            heldout=0,
            steps=3,
            batch_size=2,
            learning_rate=0.02,
            calibration_prompts=2,
            checkpoint_every=1,
            device="cpu",
            **changes,
        )
        return train(config, quiet())

    whole = run("whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run("m")
    files = sorted((tmp_path / "m.bmt.run").glob("checkpoint-*/model.safetensors"))
    kept = load_file(files[0])
    assert all(name.startswith("model.language_model.layers") for name in kept)
    assert run("m", resume=True).digest == whole.digest
