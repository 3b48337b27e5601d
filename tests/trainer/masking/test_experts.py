"""Gates of experts that transformers holds in one tensor: named, trained, exported, applied."""

from __future__ import annotations

import dataclasses
import json
import re

import bmt_core
import pytest
import torch
from bmt_core.gates.geometry import served_geometry
from bmt_core.gates.rows import Rows
from bmt_trainer.errors import ExpertTensors
from bmt_trainer.masking.apply import apply, write_checkpoint
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.calibration import input_norms
from bmt_trainer.masking.diagnosis import diagnose
from bmt_trainer.masking.experts import MaskedExpert
from bmt_trainer.masking.targets import EXPERT_GATES, select
from bmt_trainer.methods import grpo
from bmt_trainer.methods.config import GrpoConfig, SftConfig
from bmt_trainer.methods.sft import train
from bmt_trainer.models import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny_model import byte_tokenizer, interrupt_after
from tests.support.training.architectures import EXPERTS, small_config
from tests.support.training.display import Lines, quiet

SIZES = {"vocab_size": 259, "num_hidden_layers": 2, "max_position_embeddings": 256}
# Families, and names of an expert's gate in their checkpoints.
FAMILIES = {
    "mixtral": r"model\.layers\.\d\.block_sparse_moe\.experts\.\d\.w1\.weight",
    "qwen3_moe": r"model\.layers\.\d\.mlp\.experts\.\d\.gate_proj\.weight",
}


def saved(kind, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind, **EXPERTS, **SIZES))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def stacked(folder):
    """The checkpoint with gate and up projection of all experts in one tensor, as loaded."""
    config = json.loads((folder / "config.json").read_text())
    model = load_model(folder)
    file = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if ".experts." not in n}
    tensors |= {n: p.detach().clone() for n, p in model.named_parameters() if ".experts." in n}
    save_file(tensors, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings(folder, output, **changes):
    return SftConfig(
        **{
            "model": str(folder),
            "dataset": "task:initials",
            "output": output,
            "heldout": 2,
            "steps": 3,
            "batch_size": 2,
            "learning_rate": 0.02,
            "eta": 0.02,
            "calibration_prompts": 4,
            "max_new_tokens": 2,
            "device": "cpu",
            "precision": "fp32",
            "targets": EXPERT_GATES,
            "checkpoint_every": 1,
            **changes,
        }
    )


def shape_of(kind):
    return [48, 32] if kind == "mixtral" else [16, 32]


@pytest.mark.parametrize("kind", FAMILIES)
def test_gates_of_experts_are_trained_and_applied_under_the_checkpoints_names(kind, tmp_path):
    folder, display = saved(kind, tmp_path / "base"), Lines()
    mask = train(settings(folder, tmp_path / "m.bmt"), display)
    assert mask.zeros > 0
    assert len(mask.tensors) == 2 * 4
    assert all(re.fullmatch(FAMILIES[kind], tensor.name) for tensor in mask.tensors)
    assert {tensor.name: tensor.shape for tensor in mask.tensors} == served_geometry(folder)
    assert "targets: servers take masks" not in display.text
    check_applied(folder, mask, tmp_path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_checkpoint_that_stacks_them_names_their_rows(kind, tmp_path):
    folder, display = stacked(saved(kind, tmp_path / "base")), Lines()
    mask = train(settings(folder, tmp_path / "m.bmt"), display)
    assert "targets: servers take masks of the text model's gate projections" in display.text
    f = shape_of(kind)[0]
    rows = [Rows.parse(tensor.name) for tensor in mask.tensors]
    assert {(r.first, r.end) for r in rows} == {(2 * f * e, 2 * f * e + f) for e in range(4)}
    assert {r.tensor.rpartition(".")[2] for r in rows} == {"gate_up_proj"}
    check_applied(folder, mask, tmp_path)


def check_applied(folder, mask, tmp_path):
    """The masked model is the checkpoint with those rows zeroed, bit for bit; nothing else is."""
    base, applied = load_model(folder), load_model(folder)
    apply(mask, applied)
    written = write_checkpoint(mask, folder, tmp_path / "out")
    by_hand = load_file(folder / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in by_hand.items()}
    for tensor in mask.tensors:
        part = Rows.parse(tensor.name)
        own = by_hand[tensor.name if part is None else part.tensor]
        view = own.view(-1, own.shape[-1])
        view = view if part is None else view[part.first : part.end]
        view.view(-1)[torch.from_numpy(tensor.positions.astype("int64"))] = 0
    found = load_file(written / "model.safetensors")
    assert found.keys() == by_hand.keys()
    assert all(torch.equal(found[name], by_hand[name]) for name in found)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {re.sub(r"\[.*\]$", "", t.name) for t in mask.tensors if t.zeros}
    assert not any("router" in name or name.endswith(".gate.weight") for name in changed)
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        one, other, plain = (m(ids).logits for m in (applied, load_model(written), base))
    assert torch.equal(one, other)
    assert not torch.equal(one, plain)
    # Attached, with the mask on and off.
    attached = attach(base, EXPERT_GATES, stored=stored(base, folder))
    attached.load_mask(mask)
    with torch.no_grad(), attached.state.use("hard"):
        assert torch.equal(base(ids).logits, one)
    with torch.no_grad(), attached.state.use("off"):
        assert torch.equal(base(ids).logits, plain)


def stored(model, folder):
    from bmt_trainer.masking.stored_names import stored_names

    return stored_names(model, bmt_core.geometry(folder, ""))


def test_killed_and_resumed_it_ends_as_one_that_was_not(tmp_path, monkeypatch):
    folder = saved("mixtral", tmp_path / "base")
    whole = train(settings(folder, tmp_path / "whole.bmt"), quiet())
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(settings(folder, tmp_path / "m.bmt"), quiet())
    resumed = train(settings(folder, tmp_path / "m.bmt", resume=True), quiet())
    assert resumed.digest == whole.digest


@pytest.mark.found
def test_the_balance_of_a_frozen_router_is_no_part_of_the_loss(tmp_path):
    zeros = []
    for weight in (0.0, 100.0):
        folder = saved("mixtral", tmp_path / f"{weight:g}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "router_aux_loss_coef": weight}))
        mask = train(settings(folder, tmp_path / f"{weight:g}.bmt", heldout=0), quiet())
        zeros.append([tensor.positions.tolist() for tensor in mask.tensors])
    assert zeros[0] == zeros[1]


@pytest.mark.found
def test_experts_are_trained_by_rewards(tmp_path):
    """With several completions of a prompt, which the model reads once."""
    shared = settings(saved("mixtral", tmp_path / "base"), tmp_path / "m.bmt", heldout=0)
    names = {field.name for field in dataclasses.fields(GrpoConfig)}
    common = {n: v for n, v in dataclasses.asdict(shared).items() if n in names}
    own = {"prompts_per_step": 2, "completions": 2, "micro_batch": 4, "validation": 0, "steps": 1}
    assert grpo.train(GrpoConfig(**{**common, **own}), quiet()).zeros > 0


def gradients(model, mode, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("live", [False, True])
def test_gradients_of_gates_are_those_of_a_loop_over_plain_weights(live):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("mixtral", **EXPERTS, **SIZES))
    attached, ids = attach(model, EXPERT_GATES), torch.arange(3, 43).view(2, 20)
    alpha, lam = 3.0, 1e-3
    attached.state.alpha, attached.state.regularizer = alpha, lam
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.gate_logits.copy_(torch.randn_like(layer.gate_logits))
    before = [g.detach().clone() for g in attached.gates()]
    if live:
        for layer in attached.layers.values():
            layer.train_only(torch.arange(0, layer.gated_weight.numel(), 3))
    model.train()
    found = gradients(model, "soft", ids)
    assert found.keys() == {f"{name}.gate_logits" for name in attached.layers}
    # The same by autograd: the weights as a function of the gates.
    plain = AutoModelForCausalLM.from_config(small_config("mixtral", **EXPERTS, **SIZES))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "gate_logits" not in k})
    plain.train()
    gates = [g.requires_grad_() for g in before]
    changed, penalty = {}, torch.zeros(())
    parameters = dict(plain.named_parameters())
    for (name, layer), G in zip(attached.layers.items(), gates, strict=True):
        experts, _, e = name.removesuffix(".gate_proj").rpartition(".")
        key = f"{experts}.gate_up_proj"
        W = changed.get(key, parameters[key].detach())
        f = layer.out_features
        soft = W[int(e), :f] * torch.sigmoid(alpha * G)
        if live:
            trained = torch.zeros(G.numel(), dtype=torch.bool)
            trained[layer.live] = True
            soft = torch.where(trained.view(G.shape), soft, W[int(e), :f])
            penalty = penalty + soft[trained.view(G.shape)].square().sum()
        else:
            penalty = penalty + soft.square().sum()
        changed[key] = torch.cat(
            [W[: int(e)], torch.cat([soft, W[int(e), f:]])[None], W[int(e) + 1 :]]
        )
    out = torch.func.functional_call(plain, changed, (ids,), {"labels": ids})
    (out.loss - lam * penalty).backward()
    for (name, layer), G in zip(attached.layers.items(), gates, strict=True):
        expected = G.grad if not live else G.grad.flatten()[layer.live]
        torch.testing.assert_close(found[f"{name}.gate_logits"], expected, rtol=1e-4, atol=1e-7)


def test_norms_of_an_expert_are_of_the_tokens_that_take_it():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("mixtral", **EXPERTS, **SIZES)).eval()
    attached, ids = attach(model, EXPERT_GATES), torch.arange(3, 23).view(1, 20)
    seen = []
    experts = model.model.layers[0].mlp.experts
    handle = experts.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    norms = input_norms(
        model, attached, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    )
    handle.remove()
    ((x, taken),) = seen
    for e in range(4):
        own = x[(taken == e).any(-1)]
        own = own if len(own) else x
        name = f"model.layers.0.mlp.experts.{e}.gate_proj"
        assert isinstance(attached.layers[name], MaskedExpert)
        torch.testing.assert_close(norms[name], own.float().square().sum(0).sqrt())


def test_experts_are_masked_only_if_they_are_asked_for(tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("qwen3_moe", **EXPERTS))
    with pytest.raises(ExpertTensors, match=r"to mask the gate of each expert, set targets to"):
        select(model)
    chosen = select(model, EXPERT_GATES)
    assert len(chosen) == 4 * 4
    assert {target.shape for target in chosen.values()} == {(16, 32)}
    found = diagnose(saved("qwen3_moe", tmp_path / "base"), EXPERT_GATES)
    assert found.refusal is None
    assert found.masked == (0, 1)
    assert found.not_served is None


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_transposed_experts_are_refused_by_name(kind):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config(kind, **EXPERTS))
    with pytest.raises(ExpertTensors, match=r"experts\.gate_up_proj .*transposed"):
        select(model, EXPERT_GATES)
