"""SFT end to end with TRL on a tiny model: mask, metadata, resumption, errors."""

from __future__ import annotations

import dataclasses
import io
import json

import bmt_core
import bmt_trainer.console
import bmt_trainer.methods.pipeline
import pytest
import torch
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError, DataError, NoTargets, OutputError, ResumeError
from bmt_trainer.masking.apply import apply
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.sft import train
from bmt_trainer.models import load_model
from rich.console import Console
from safetensors import safe_open

from tests.support.tiny_model import byte_tokenizer, interrupt_after, tiny_llama
from tests.support.training.display import quiet

STEPS = 6


def settings(checkpoint, output, **changes):
    return SftConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": output,
            "heldout": 6,
            "steps": STEPS,
            "batch_size": 4,
            # So that a handful of steps moves gates over the threshold.
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "max_new_tokens": 4,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


@dataclasses.dataclass
class Spied:
    """Forward passes of the masked layers, and gates and base weights at export."""

    forwards: list = dataclasses.field(default_factory=list)
    gates: list = dataclasses.field(default_factory=list)
    base: dict = dataclasses.field(default_factory=dict)


@pytest.fixture
def spied(monkeypatch):
    spy = Spied()
    forward, export = MaskedLinear.forward, bmt_trainer.methods.pipeline.export

    def spying_forward(self, x):
        state = self.state
        spy.forwards.append(
            (state.mode, torch.is_grad_enabled(), state.alpha, state.regularizer, id(self))
        )
        return forward(self, x)

    def spying_export(attached, *args, **kwargs):
        spy.gates = [g.detach().clone() for g in attached.gates()]
        spy.base = {n: m.weight.detach().clone() for n, m in attached.layers.items()}
        return export(attached, *args, **kwargs)

    monkeypatch.setattr(MaskedLinear, "forward", spying_forward)
    monkeypatch.setattr(bmt_trainer.methods.pipeline, "export", spying_export)
    return spy


def test_a_run_from_data_to_mask(checkpoint, tmp_path, spied):
    before = bmt_core.fingerprint(checkpoint)
    config = settings(checkpoint, tmp_path / "m.bmt", gradient_accumulation=2)
    mask = train(config, quiet())

    # The file is the mask, made for this base; only the history of its steps is next to it.
    assert bmt_core.load(tmp_path / "m.bmt", expect_base=before) == mask
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bmt", "m.bmt.history.json"]
    assert set(bmt_core.geometry(checkpoint)) == {t.name for t in mask.tensors}
    assert mask.zeros == sum(int((g <= 0).sum()) for g in spied.gates)

    # The metadata records the run.
    meta = mask.metadata
    assert (meta["method"], meta["dataset"], meta["steps"]) == ("sft", "task:initials", STEPS)
    assert meta["config"]["learning_rate"] == 0.01
    assert meta["config"]["eta"] == 1 / 2048
    assert set(meta["scores"]) == {"base", "init", "mask", "guess"}
    assert all(score["total"] == 6 for score in meta["scores"].values())
    assert {"torch", "transformers", "trl"} <= set(meta["versions"])
    assert 0 < meta["loss"] < 10
    assert str(tmp_path) not in json.dumps(dict(meta))

    # The base is bit-identical, in memory and on disk.
    assert bmt_core.fingerprint(checkpoint) == before
    fresh = load_model(checkpoint)
    for name, weight in spied.base.items():
        assert torch.equal(weight, fresh.get_submodule(name).weight)

    # Loss forwards are soft, with Eq. 7's α and a share of λ per micro-batch; no other forward is.
    soft = [f for f in spied.forwards if f[0] == "soft"]
    layer = soft[0][-1]
    first = [f for f in soft if f[-1] == layer]
    assert all(grad for _, grad, *_ in soft)
    expected = [sharpness(t, STEPS, 1e2, 1e3) for t in range(STEPS) for _ in range(2)]
    assert [alpha for _, _, alpha, _, _ in first] == expected
    assert {reg for *_, reg, _ in soft} == {1e-5 / 2}
    others = {(mode, grad) for mode, grad, *_ in spied.forwards if mode != "soft"}
    assert others == {("hard", False), ("off", False)}

    # Applied to a fresh model, the mask gives the hard weights of the end of training.
    apply(mask, fresh)
    for (name, weight), gate in zip(spied.base.items(), spied.gates, strict=True):
        assert torch.equal(fresh.get_submodule(name).weight, weight * (gate > 0))


def test_equal_settings_give_equal_masks_and_a_seed_another(checkpoint, tmp_path):
    one = train(settings(checkpoint, tmp_path / "1.bmt"), quiet())
    two = train(settings(checkpoint, tmp_path / "2.bmt"), quiet())
    other = train(settings(checkpoint, tmp_path / "3.bmt", seed=1), quiet())
    assert (tmp_path / "1.bmt").read_bytes() == (tmp_path / "2.bmt").read_bytes()
    assert one == two != other


def test_training_flips_gates_both_ways(checkpoint, tmp_path, spied):
    config = settings(checkpoint, tmp_path / "a.bmt", heldout=0)
    train(config, quiet())
    trained = spied.gates
    train(dataclasses.replace(config, output=tmp_path / "b.bmt", learning_rate=1e-12), quiet())
    start = spied.gates
    flips = [((a > 0) != (b > 0)) for a, b in zip(trained, start, strict=True)]
    assert sum(int(f.sum()) for f in flips) > 0
    assert sum(int((f & (b <= 0)).sum()) for f, b in zip(flips, start, strict=True)) > 0


@pytest.mark.parametrize(
    "changes", [{}, {"gradient_accumulation": 2}, {"group_by_length": True, "train_examples": 7}]
)
def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, spied, monkeypatch, changes):
    config = settings(checkpoint, tmp_path / "whole.bmt", **changes)
    whole = train(config, quiet())
    gates = spied.gates
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    assert not (tmp_path / "cut.bmt").exists()

    # The newest checkpoint is of step 4 and holds only gates; the one before it is kept.
    before, folder = sorted((tmp_path / "cut.bmt.run").glob("checkpoint-*"))
    assert (before.name, folder.name) == ("checkpoint-2", "checkpoint-4")
    with safe_open(folder / "model.safetensors", "pt") as kept:
        keys = list(kept.keys())
    assert len(keys) == 2
    assert all(key.endswith("mlp.gate_proj.gate_logits") for key in keys)

    spied.forwards.clear()
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert resumed == whole
    assert dict(resumed.metadata) == dict(whole.metadata)
    for a, b in zip(spied.gates, gates, strict=True):
        assert torch.equal(a, b)
    # Only the last two steps ran, at their own α.
    alphas = [f[2] for f in spied.forwards if f[0] == "soft"]
    assert sorted(set(alphas)) == [sharpness(t, STEPS, 1e2, 1e3) for t in (4, 5)]
    assert not (tmp_path / "cut.bmt.run").exists()


def test_an_unfinished_run_is_neither_overwritten_nor_mixed(checkpoint, tmp_path, monkeypatch):
    config = settings(checkpoint, tmp_path / "m.bmt", heldout=0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet())
    with pytest.raises(OutputError, match="unfinished run"):
        train(config, quiet())
    with pytest.raises(ResumeError, match=r"learning_rate = 0\.01, not 0\.02"):
        train(dataclasses.replace(config, resume=True, learning_rate=0.02), quiet())
    for text in ("{", "[]", '{"settings": 1}'):
        (tmp_path / "m.bmt.run" / "run.json").write_text(text)
        for resume in (True, False):
            with pytest.raises(ResumeError, match="no run of ours"):
                train(dataclasses.replace(config, resume=resume), quiet())


def test_resume_without_a_run_starts_one(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "m.bmt", heldout=0, steps=1, resume=True)
    assert train(config, quiet()).metadata["scores"] == {}


def test_an_interruption_before_the_first_checkpoint(checkpoint, tmp_path, monkeypatch):
    config = settings(checkpoint, tmp_path / "m.bmt", checkpoint_every=0)
    whole = train(dataclasses.replace(config, output=tmp_path / "w.bmt"), quiet())
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet())
    assert train(dataclasses.replace(config, resume=True), quiet()) == whole


def test_gradient_checkpointing_and_float32_train_too(checkpoint, tmp_path, spied):
    config = settings(checkpoint, tmp_path / "a.bmt", heldout=0, steps=2, precision="fp32")
    train(config, quiet())
    plain = spied.gates
    again = dataclasses.replace(config, output=tmp_path / "b.bmt", gradient_checkpointing=True)
    train(again, quiet())
    for a, b in zip(plain, spied.gates, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.found
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_is_the_arithmetic_of_a_float32_checkpoint(tmp_path, dtype, spied):
    """The same weights, stored in 16 bits and in 32: every gate is the same, the bases differ."""
    gates, masks = [], []
    for stored in (dtype, torch.float32):
        folder = tmp_path / str(stored)
        tiny_llama(dtype).to(stored).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        config = settings(folder, tmp_path / f"{stored}.bmt", heldout=2, precision="fp32")
        masks.append(train(config, quiet()))
        gates.append(spied.gates)
        assert masks[-1].base.fingerprint == bmt_core.fingerprint(folder)
    assert all(torch.equal(a, b) for a, b in zip(*gates, strict=True))
    for of_16, of_32 in zip(*(mask.tensors for mask in masks), strict=True):
        assert of_16.positions.tolist() == of_32.positions.tolist()
    assert masks[0].metadata["scores"] == masks[1].metadata["scores"]
    train(settings(tmp_path / str(dtype), tmp_path / "auto.bmt", heldout=0), quiet())
    assert not all(torch.equal(a, b) for a, b in zip(gates[0], spied.gates, strict=True))


def test_examples_that_are_too_long(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "m.bmt", max_length=5)
    with pytest.raises(DataError, match="at most 5 tokens"):
        train(config, quiet())


def test_no_layer_to_mask(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "m.bmt", heldout=0, targets="nowhere")
    with pytest.raises(NoTargets, match="gate_proj"):
        train(config, quiet())
    # A run that failed before its first checkpoint does not block the next one.
    train(settings(checkpoint, tmp_path / "m.bmt", heldout=0, steps=1), quiet())


def test_output_that_is_a_folder(checkpoint, tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        train(settings(checkpoint, tmp_path), quiet())


def test_several_processes_are_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        train(settings(checkpoint, tmp_path / "m.bmt"), quiet())
    assert not list(tmp_path.iterdir())


def test_evaluation_is_in_the_weights_own_dtype(checkpoint, tmp_path, monkeypatch):
    """accelerate leaves its autocast on the model that it trains; a server has none."""
    seen = set()

    def forward(self, x):
        seen.add((self.state.mode, torch.is_autocast_enabled("cpu")))
        return plain(self, x)

    plain = MaskedLinear.forward
    monkeypatch.setattr(MaskedLinear, "forward", forward)
    train(settings(checkpoint, tmp_path / "m.bmt", heldout=2, steps=1, precision="bf16"), quiet())
    assert seen == {("off", False), ("soft", True), ("hard", False)}


@pytest.mark.found
def test_a_run_says_how_many_rows_and_prompts_it_has(checkpoint, tmp_path):
    rows = [{"prompt": f"q{i % 3}", "completion": f"a{i}"} for i in range(24)]
    data = tmp_path / "x.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = io.StringIO()
    config = settings(checkpoint, tmp_path / "o.bmt", dataset=str(data), heldout=0, steps=1)
    train(config, Display(Console(file=shown, width=200)))
    assert "24 rows, 3 different prompts" in shown.getvalue()
