"""`bmt-train doctor`: what of a model is masked, what is not and why, and what a server takes."""

from __future__ import annotations

import json

import pytest
import torch
from bmt_trainer.cli.main import app
from bmt_trainer.masking.diagnosis import diagnose
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.support.training.architectures import EXPERTS, LATE_EXPERTS, LATENT, small_config


@pytest.fixture
def saved(tmp_path):
    def save(kind, **changes):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small_config(kind, **changes))
        model.save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return save


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("llama", "model.layers.0.mlp.gate_proj.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight[0:48]"),
        # Under the checkpoint's names, not the loaded model's.
        ("gemma3_text", "model.layers.0.mlp.gate_proj.weight"),
    ],
)
def test_a_model_that_is_masked_in_every_layer(kind, tensor, saved):
    folder = saved(kind)
    found = doctor(folder, "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["tensors"][tensor] == [48, 32]
    assert len(answer["tensors"]) == answer["layers"] == len(answer["masked"]) == 4
    assert answer["reasons"] == {}
    assert answer["refusal"] is answer["not_served"] is None
    text = doctor(folder).stdout
    assert "masked: 4 of 4 layers, 6,144 weights" in text
    assert "training: yes" in text
    assert "server: yes" in text


def test_experts_behind_dense_layers(saved):
    found = doctor(saved("deepseek_v3", **LATE_EXPERTS, **LATENT))
    assert found.exit_code == 1
    assert "masked: 1 of 4 layers" in found.stdout
    assert "not masked: layer 1 to 3: the experts of mlp.experts.gate_up_proj" in found.stdout
    assert "training: refused: " in found.stdout
    assert "server: no: " in found.stdout
    # The same layers if they are asked for: they train, and no server takes them.
    asked = doctor(saved("deepseek_v3", **LATE_EXPERTS, **LATENT), "--targets", r"mlp\.gate_proj$")
    assert asked.exit_code == 0
    assert "training: yes" in asked.stdout
    assert "server: no: " in asked.stdout


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("mixtral", EXPERTS, "are in one tensor"),
        ("starcoder2", {}, "it has no gate projection"),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 4}, "it has no gate projection"),
    ],
)
def test_a_model_without_anything_to_mask(kind, changes, reason, saved):
    found = diagnose_of(saved(kind, **changes))
    assert found.tensors == {}
    assert found.masked == ()
    assert len(found.reasons) == found.layers == 4
    assert all(reason in text for text in found.reasons.values())
    assert found.refusal
    assert found.not_served == "there is nothing to serve"


def diagnose_of(folder):
    from pathlib import Path

    return diagnose(Path(folder))


def test_targets_that_no_server_takes(saved):
    found = doctor(saved("llama"), "--targets", r"\.mlp\.up_proj$")
    assert found.exit_code == 0
    assert "server: no: servers take masks of the text model's gate projections" in found.stdout
    nothing = doctor(saved("llama"), "--targets", "nowhere")
    assert nothing.exit_code == 1
    assert "training: refused: targets: 'nowhere' matches none" in nothing.stdout
    assert "masked: 0 of 4 layers" in nothing.stdout


@pytest.mark.parametrize("shape", [None, (8, 32)])
def test_a_layer_that_the_checkpoint_lacks_is_not_masked(saved, shape):
    folder, name = saved("llama"), "model.layers.2.mlp.gate_proj.weight"
    file = f"{folder}/model.safetensors"
    weights = load_file(file)
    del weights[name]
    if shape is not None:
        weights[name] = torch.zeros(shape)
    save_file(weights, file, metadata={"format": "pt"})
    found = diagnose_of(folder)
    assert found.masked == (0, 1, 3)
    assert len(found.tensors) == 3
    assert found.reasons == {2: f"the checkpoint has no {name} of [48, 32]"}
    assert name in found.refusal
    assert name in found.not_served


def test_a_gate_that_the_model_does_not_load(saved):
    folder, name = saved("llama"), "draft.layers.0.mlp.gate_proj.weight"
    file = f"{folder}/model.safetensors"
    save_file({**load_file(file), name: torch.zeros(48, 32)}, file, metadata={"format": "pt"})
    found = diagnose_of(folder)
    assert found.unloaded == (name,)
    assert found.refusal is None
    assert name in found.not_served


def test_a_folder_that_is_no_checkpoint(tmp_path):
    found = doctor(str(tmp_path))
    assert found.exit_code == 1
    assert "config.json" in str(found.exception)
