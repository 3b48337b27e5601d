"""NaN and infinity end a run with an error that names where and when."""

from __future__ import annotations

import shutil

import bmt_trainer.methods.guards.finite
import bmt_trainer.methods.trl_mixins
import pytest
import torch
from bmt_trainer.errors import EmptyMask, NonFinite
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.calibration import check_norms
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.guards.finite import check_gates, check_weights
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import byte_tokenizer, tiny_llama
from tests.support.training.display import quiet

METHODS = {
    "sft": (sft.train, SftConfig, {"batch_size": 2}),
    "grpo": (
        grpo.train,
        GrpoConfig,
        {"prompts_per_step": 2, "completions": 2, "micro_batch": 2, "validation": 0},
    ),
    "sdft": (sdft.train, SdftConfig, {"prompts_per_step": 2, "micro_batch": 2, "validation": 0}),
}


def run(method, model, output, **changes):
    train, kind, own = METHODS[method]
    values = {
        "model": str(model),
        "dataset": "task:initials",
        "output": output,
        "heldout": 0,
        "steps": 4,
        "calibration_prompts": 4,
        "max_new_tokens": 8,
        "device": "cpu",
        **own,
        **changes,
    }
    return train(kind(**values), quiet())


@pytest.mark.found
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_base_weight(checkpoint, tmp_path, value):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFinite, match=name):
        run("sft", base, tmp_path / "m.bmt")
    assert not (tmp_path / "m.bmt").exists()


@pytest.fixture
def overflowing(tmp_path):
    """A float16 checkpoint of finite weights whose activations exceed 65,504."""
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight *= 1e5
            layer.mlp.up_proj.weight *= 1e5
    folder = tmp_path / "half"
    model.half().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.found
@pytest.mark.parametrize("heldout", [0, 2])
def test_a_float16_checkpoint_that_overflows(overflowing, tmp_path, monkeypatch, heldout):
    """As on a device that keeps float16: its CPU path would compute in fp32."""
    monkeypatch.setattr("bmt_trainer.models.slow_in_16_bits", lambda device: False)
    with pytest.raises(NonFinite, match=r"float16.*--precision fp32"):
        run("sft", overflowing, tmp_path / "m.bmt", heldout=heldout)
    assert not (tmp_path / "m.bmt").exists()
    run("sft", overflowing, tmp_path / "m.bmt", precision="fp32", heldout=heldout)
    assert (tmp_path / "m.bmt").exists()


@pytest.mark.found
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_names_its_step(checkpoint, tmp_path, monkeypatch, method, value):
    trainer = {
        "sft": sft.MaskedSFTTrainer,
        "grpo": grpo.MaskedGRPOTrainer,
        "sdft": sdft.MaskedSDFTTrainer,
    }[method]
    compute = trainer.compute_loss

    def spoilt(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        factor = value if self.state.global_step == 2 else 1.0
        return (loss[0] * factor, *loss[1:]) if isinstance(loss, tuple) else loss * factor

    monkeypatch.setattr(trainer, "compute_loss", spoilt)
    with pytest.raises(NonFinite, match="step 3: the loss"):
        run(method, checkpoint, tmp_path / "m.bmt")
    assert not (tmp_path / "m.bmt").exists()


def test_a_gradient_leaves_the_gates_of_the_step_before(checkpoint, tmp_path, monkeypatch):
    gates = {}

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    compute = sft.MaskedSFTTrainer.compute_loss

    def spoilt(self, *args, **kwargs):
        gates["now"] = self.attached.gates()
        gates["before"] = [g.detach().clone() for g in gates["now"]]
        loss = compute(self, *args, **kwargs)
        return Spoilt.apply(loss) if self.state.global_step == 1 else loss

    monkeypatch.setattr(sft.MaskedSFTTrainer, "compute_loss", spoilt)
    with pytest.raises(NonFinite, match="step 2: the gradient norm"):
        run("sft", checkpoint, tmp_path / "m.bmt")
    for now, before in zip(gates["now"], gates["before"], strict=True):
        assert torch.equal(now, before)


def test_gates_weights_and_norms_name_their_layer():
    model = tiny_llama()
    attached = attach(model)
    check_gates(attached, 7)
    check_weights(model)
    name, layer = list(attached.layers.items())[1]
    layer.gate_logits.data[1, 2] = float("nan")
    with pytest.raises(NonFinite, match=f"step 7: the gates of {name}"):
        check_gates(attached, 7)
    with pytest.raises(NonFinite, match="calibration: the inputs of b"):
        check_norms({"a": torch.ones(3), "b": torch.tensor([1.0, float("inf")])})


def test_large_finite_values_are_no_fault():
    """A sum of them overflows, and they do not."""
    check_norms({"a": torch.full((4,), 3e38)})


def test_an_empty_mask_is_no_success(checkpoint, tmp_path):
    # At this rate no gate moves, and without a tail no weight but the unimportant starts deleted.
    with pytest.raises(EmptyMask, match="lean off"):
        run("sft", checkpoint, tmp_path / "m.bmt", learning_rate=1e-12, lean="on")
    assert not (tmp_path / "m.bmt").exists()
    mask = run("sft", checkpoint, tmp_path / "n.bmt", learning_rate=1e-12, lean="auto", heldout=2)
    assert mask.zeros


@pytest.mark.parametrize("place", ["loss", "gates"])
def test_all_processes_hear_of_one(monkeypatch, place):
    """`any_rank` is asked in each process, so that a fault in another one ends this one too."""
    asked = []

    def another(value, device):
        asked.append(value)
        return True

    if place == "gates":
        monkeypatch.setattr(bmt_trainer.methods.guards.finite, "any_rank", another)
        with pytest.raises(NonFinite, match="another process"):
            check_gates(attach(tiny_llama()), 1)
    else:
        guarded = bmt_trainer.methods.trl_mixins.GuardedTraining
        monkeypatch.setattr("bmt_trainer.methods.guards.training.any_rank", another)
        trainer = object.__new__(guarded)
        trainer.state = type("State", (), {"global_step": 1})()
        trainer.model = tiny_llama()
        trainer.args = type("Arguments", (), {"bf16": True})()
        with pytest.raises(NonFinite, match="step 2: the loss"):
            trainer._check("loss", torch.tensor(True))
    assert asked == [False]
