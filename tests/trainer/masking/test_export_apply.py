"""Export of gates to a mask file, and masks applied to a model or a checkpoint."""

import os
import shutil
from pathlib import Path

import bmt_core
import numpy as np
import pytest
import torch
from bmt_core import Base, BaseMismatch
from bmt_trainer.cli import main
from bmt_trainer.errors import ModelNotFound, OutputError, UnknownBase
from bmt_trainer.masking.apply import apply, write_checkpoint
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.export import export
from bmt_trainer.models import (
    base_of,
    checkpoint_folder,
    load_model,
    load_tokenizer,
)
from bmt_trainer.templates.chat_templates import template_digest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.support.tiny_model import tiny_llama


def random_gates(model, share=0.1, seed=0):
    attached = attach(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in attached.gates():
            gate.copy_(torch.rand(gate.shape, generator=generator) - share)
    return attached


@pytest.fixture
def made(checkpoint):
    """(attached, mask): the checkpoint's model with random gates, and their mask."""
    attached = random_gates(load_model(checkpoint))
    mask = export(
        attached,
        base_of(checkpoint, checkpoint),
        geometry=bmt_core.geometry(checkpoint),
        metadata={"method": "test"},
    )
    return attached, mask


def test_the_mask_zeros_the_gates_at_or_below_zero(made):
    attached, mask = made
    assert mask.zeros == attached.closed > 0
    for tensor, (name, layer) in zip(mask.tensors, sorted(attached.layers.items()), strict=True):
        assert tensor.name == f"{name}.weight"
        assert tensor.shape == (64, 32)
        naive = [p for p, g in enumerate(layer.gate_logits.flatten().tolist()) if g <= 0]
        assert tensor.positions.tolist() == naive
    assert mask.metadata == {"method": "test"}


def test_a_weight_that_is_zero_in_the_base_is_left_out_of_the_mask(checkpoint):
    model = load_model(checkpoint)
    weight = model.model.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        weight.view(-1)[:2] = torch.tensor([0.0, -0.0])
    attached = attach(model)
    with torch.no_grad():
        attached.gates()[0].view(-1)[:3] = -1.0
    mask = export(attached, Base("tiny", "0" * 64))
    assert mask.tensors[0].positions.tolist() == [2]


def test_a_layer_that_the_checkpoint_lacks_is_an_error():
    attached = attach(tiny_llama())
    geometry = {"model.layers.0.mlp.gate_proj.weight": (64, 32)}
    with pytest.raises(BaseMismatch, match=r"layers\.1.*absent"):
        export(attached, Base("tiny", "0" * 64), geometry=geometry)


@pytest.mark.parametrize("codec", ["gaps", "packbits"])
def test_applied_mask_is_the_effective_weight(made, checkpoint, tmp_path, codec):
    attached, mask = made
    bmt_core.save(mask, tmp_path / "m.bmt", codec)
    loaded = bmt_core.load(tmp_path / "m.bmt")
    model = load_model(checkpoint)
    untouched = {n: p.clone() for n, p in model.named_parameters()}
    apply(loaded, model)
    masked = set()
    for name, layer in attached.layers.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, layer.effective_weight("hard"))
        assert not torch.signbit(weight[weight == 0]).any()
        masked.add(f"{name}.weight")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, untouched[name]) == (name not in masked)
    tokens = torch.arange(12)[None]
    with attached.state.use("hard"), torch.no_grad():
        trained = next(iter(attached.layers.values()))
        assert trained.state is attached.state
    logits = model(tokens).logits
    assert torch.isfinite(logits).all()


def shard(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Copy the checkpoint in another dtype, half of its tensors in each of two files."""
    target.mkdir()
    tensors = {n: t.to(dtype) for n, t in load_file(source / "model.safetensors").items()}
    names = sorted(tensors)
    for at, part in enumerate((names[::2], names[1::2])):
        save_file(
            {n: tensors[n] for n in part},
            target / f"model-{at + 1:05}-of-00002.safetensors",
            {"format": "pt"},
        )
    where = {n: f"model-{at + 1:05}-of-00002.safetensors" for at in (0, 1) for n in names[at::2]}
    import json

    index = {"metadata": {}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_written_checkpoint_equals_apply_for_any_shards_and_dtype(checkpoint, tmp_path, dtype):
    source = tmp_path / "source"
    shard(checkpoint, source, dtype)
    (source / "pytorch_model.bin").write_bytes(b"unmasked")
    save_file({"layers.0.w1": torch.ones(2, 2)}, source / "consolidated.safetensors")
    (source / "consolidated.safetensors.index.json").write_text("{}")
    (source / "extra.txt").write_text("kept")
    attached = random_gates(load_model(source))
    mask = export(attached, base_of(source, source))
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    out = write_checkpoint(mask, source, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert (out / "extra.txt").read_text() == "kept"
    assert not (out / "pytorch_model.bin").exists()
    assert not list(out.glob("consolidated*"))
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    assert model.dtype == dtype
    apply(mask, model)
    written = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    for (name, a), (_, b) in zip(model.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype


def test_a_snapshot_of_links_is_written_as_files(made, checkpoint, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(checkpoint, blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        os.chmod(file, 0o444)
        (snapshot / file.name).symlink_to(file)
    before = bmt_core.fingerprint(blobs)
    out = write_checkpoint(made[1], snapshot, tmp_path / "out")
    assert not any(p.is_symlink() for p in out.iterdir())
    assert bmt_core.fingerprint(blobs) == before != bmt_core.fingerprint(out)


def test_another_base_is_refused_and_nothing_is_written(made, tmp_path):
    other = tmp_path / "other"
    tiny_llama(torch.bfloat16, seed=1).save_pretrained(other)
    model = load_model(other)
    before = model.model.layers[0].mlp.gate_proj.weight.clone()
    with pytest.raises(BaseMismatch, match="fingerprint"):
        apply(made[1], model)
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight, before)
    with pytest.raises(BaseMismatch):
        write_checkpoint(made[1], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_model_lacks_is_refused_before_any_change(made, checkpoint):
    _, mask = made
    first = mask.tensors[0]
    odd = bmt_core.TensorMask("model.layers.9.mlp.gate_proj.weight", first.shape, first.positions)
    wrong = bmt_core.Mask(mask.base, (first, odd))
    model = load_model(checkpoint)
    before = model.model.layers[0].mlp.gate_proj.weight.clone()
    with pytest.raises(BaseMismatch, match=r"layers\.9.*absent"):
        apply(wrong, model)
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight, before)


def test_wrong_tensors_leave_no_half_written_checkpoint(made, checkpoint, tmp_path):
    _, mask = made
    first = mask.tensors[0]
    odd = bmt_core.TensorMask(first.name, (32, 64), first.positions)
    with pytest.raises(BaseMismatch, match="in the mask"):
        write_checkpoint(bmt_core.Mask(mask.base, (odd,)), checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_output_is_not_overwritten(made, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(made[1], checkpoint, out)  # an empty folder is fine
    with pytest.raises(OutputError, match="not empty"):
        write_checkpoint(made[1], checkpoint, out)


def test_a_model_of_unknown_origin_needs_a_fingerprint(made, checkpoint):
    model = tiny_llama(torch.bfloat16)
    with pytest.raises(UnknownBase, match="base_fingerprint"):
        apply(made[1], model)
    apply(made[1], model, base_fingerprint=bmt_core.fingerprint(checkpoint))
    assert (model.model.layers[0].mlp.gate_proj.weight == 0).any()


def test_a_model_that_does_not_exist(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="no/such-model"):
        checkpoint_folder("no/such-model")
    with pytest.raises(ModelNotFound, match="not a name"):
        checkpoint_folder("not a name/at/all")


def applied(checkpoint, tmp_path, *options, **metadata):
    """`bmt-train apply` of a mask with this metadata: its output, and the checkpoint's template."""
    tensor = next(iter(bmt_core.geometry(checkpoint)))
    shape = bmt_core.geometry(checkpoint)[tensor]
    base = bmt_core.Base("tiny", bmt_core.fingerprint(checkpoint))
    positions = np.arange(3, dtype=np.uint32)
    mask = bmt_core.Mask(base, (bmt_core.TensorMask(tensor, shape, positions),), metadata)
    bmt_core.save(mask, tmp_path / "m.bmt")
    out = tmp_path / "out"
    arguments = ["apply", str(tmp_path / "m.bmt"), "--model", str(checkpoint), "--output", str(out)]
    done = CliRunner().invoke(main.app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    return done.stderr, load_tokenizer(out).chat_template


def test_apply_writes_the_template_of_the_training(checkpoint, tmp_path):
    trained = load_tokenizer(checkpoint, "tools")
    said, template = applied(checkpoint, tmp_path, chat_template=template_digest(trained))
    assert template == trained.chat_template
    assert "tools" in said


def test_apply_says_so_if_it_does_not_know_the_template(checkpoint, tmp_path):
    own = load_tokenizer(checkpoint).chat_template
    said, template = applied(checkpoint, tmp_path, chat_template="ab" * 32)
    assert template == own
    assert "ab" * 32 in said
    assert "--chat-template" in said


def test_apply_takes_the_template_from_a_file(checkpoint, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages }}\n{# é #}")
    digest = template_digest(load_tokenizer(checkpoint, str(file)))
    said, template = applied(
        checkpoint, tmp_path, "--chat-template", str(file), chat_template=digest
    )
    assert template == file.read_text()
    assert said == ""


@pytest.mark.parametrize("known", [True, False])
def test_apply_keeps_the_checkpoints_own_template(checkpoint, tmp_path, known):
    tokenizer = load_tokenizer(checkpoint)
    metadata = {"chat_template": template_digest(tokenizer)} if known else {}
    said, template = applied(checkpoint, tmp_path, **metadata)
    assert (said, template) == ("", tokenizer.chat_template)
