"""`bmt-train doctor`: what of a model is masked, what is not and why, and what a server takes."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import bmt_trainer.hub
import pytest
import torch
from bmt_trainer.cli.main import app
from bmt_trainer.errors import ModelError
from bmt_trainer.masking.diagnosis import diagnose
from bmt_trainer.masking.targets import EXPERT_GATES
from bmt_trainer.models import load_model
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.support.http.hub import running_hub, use
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
    # The same layers, and the experts, if they are asked for.
    folder = saved("deepseek_v3", **LATE_EXPERTS, **LATENT)
    for targets, masked in ((r"mlp\.gate_proj$", 1), (EXPERT_GATES, 3)):
        asked = doctor(folder, "--targets", targets)
        assert asked.exit_code == 0
        assert f"masked: {masked} of 4 layers" in asked.stdout
        assert "training: yes" in asked.stdout
        assert "server: yes" in asked.stdout


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


@pytest.mark.parametrize(
    ("kind", "changes", "gone", "words"),
    [
        ("llama", {}, "model.norm.weight", "lacks 1 tensors of its model, model.norm.weight"),
        ("qwen3", {}, "model.layers.1.self_attn.k_proj.weight", "lacks 1 tensors of its model"),
        # Of stacked experts, the loader says it.
        (
            *("deepseek_v3", {**LATE_EXPERTS, **LATENT}),
            *("model.layers.2.mlp.experts.1.down_proj.weight", "cannot be loaded as a DeepseekV3"),
        ),
    ],
)
@pytest.mark.found
def test_a_tensor_that_is_no_gate_and_that_the_checkpoint_lacks(kind, changes, gone, words, saved):
    folder = saved(kind, **changes)
    asked = ("--targets", r"mlp\.gate_proj$")
    assert "training: yes" in doctor(folder, *asked).stdout
    file = f"{folder}/model.safetensors"
    weights = load_file(file)
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    found = doctor(folder, *asked)
    assert found.exit_code == 1
    assert "training: refused: " in found.stdout
    assert words in found.stdout
    # As training refuses it.
    with pytest.raises(ModelError):
        load_model(Path(folder))


def test_memory_of_each_method(saved):
    lines = doctor(saved("llama")).stdout.splitlines()
    stated = [line for line in lines if line.startswith("memory of ")]
    assert [line.split()[2] for line in stated] == ["sft", "dpo", "kto", "grpo", "sdft"]
    assert all("6,144 gates x" in line for line in stated if " grpo " not in line)
    assert doctor(saved("starcoder2")).stdout.count("memory of ") == 0


@pytest.mark.found
@pytest.mark.parametrize("shards", [False, True])
def test_of_a_model_of_the_hub_headers_are_downloaded_alone(saved, monkeypatch, tmp_path, shards):
    folder = Path(saved("llama", vocab_size=40_000))
    if shards:
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="3MB")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert weights > 5_000_000
    with running_hub() as hub:
        use(hub, monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(bmt_trainer.hub, "endpoint", lambda: hub.url)
        hub.add("acme/tiny", {**files, "tokenizer.json": b"{}", "original/consolidated.pth": b"0"})
        found = doctor("acme/tiny", "--json")
        assert found.exit_code == 0, found.output
        answer = json.loads(found.stdout)
        assert answer == json.loads(doctor(str(folder), "--json").stdout)
        asked = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET"}
        assert not asked & {"tokenizer.json", "consolidated.pth"}
        assert hub.sent < 500_000
        # Neither is the cache half filled.
        assert not list(hub.cache.rglob("*.safetensors"))
        assert "'acme/none' is not a folder" in str(doctor("acme/none").exception)


def test_a_snapshot_that_is_downloaded_needs_no_hub(saved, monkeypatch, tmp_path):
    folder = Path(saved("llama"))
    with running_hub() as hub:
        use(hub, monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(bmt_trainer.hub, "endpoint", lambda: hub.url)
        hub.add("acme/tiny", {file.name: file.read_bytes() for file in folder.iterdir()})
        snapshot_download("acme/tiny", endpoint=hub.url)
    assert doctor("acme/tiny").exit_code == 0


@pytest.mark.found
def test_layers_that_the_targets_leave_out(saved):
    found = doctor(saved("llama"), "--targets", r"layers\.0\.mlp\.gate_proj$")
    assert "masked: 1 of 4 layers" in found.stdout
    assert "not masked: layer 1 to 3: the targets leave its gate projection out" in found.stdout
    none = doctor(saved("llama"), "--targets", "nowhere")
    assert "layer 0 to 3: the targets leave its gate projection out" in none.stdout


@pytest.mark.found
@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_names_no_files(saved, monkeypatch, tmp_path, index):
    folder = Path(saved("llama"))
    (folder / "model.safetensors.index.json").write_text(index)
    words = r"model\.safetensors\.index\.json (cannot be read|is no JSON|has no object weight_map)"
    with pytest.raises(ModelError, match=words):
        diagnose_of(folder)
    with running_hub() as hub:
        use(hub, monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(bmt_trainer.hub, "endpoint", lambda: hub.url)
        hub.add("acme/tiny", {file.name: file.read_bytes() for file in folder.iterdir()})
        snapshot_download("acme/tiny", endpoint=hub.url)
    found = doctor("acme/tiny")
    assert isinstance(found.exception, ModelError)
    assert re.search(words, str(found.exception))


@pytest.mark.found
@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99999999999999999999]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.5]}}',
    ],
)
def test_a_header_of_the_hub_that_is_malformed(saved, monkeypatch, tmp_path, header):
    folder = Path(saved("llama"))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    files["model.safetensors"] = struct.pack("<Q", len(header)) + header.encode()
    with running_hub() as hub:
        use(hub, monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(bmt_trainer.hub, "endpoint", lambda: hub.url)
        hub.add("acme/tiny", files)
        found = doctor("acme/tiny")
    assert isinstance(found.exception, ModelError)
    assert "the header of model.safetensors is malformed" in str(found.exception)
