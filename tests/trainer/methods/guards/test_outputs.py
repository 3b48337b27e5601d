"""Refusals before the base answers; existing files stay."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import bmt_core
import pytest
import torch
from bmt_core import BaseMismatch
from bmt_trainer import models
from bmt_trainer.errors import ExpertTensors, OutputError, TrainerError
from bmt_trainer.masking.attach import attach
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.guards import outputs
from bmt_trainer.methods.guards.checkpoints import Checkpoints, is_write_failure
from bmt_trainer.methods.run_folder import RunFolder
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_model import byte_tokenizer, interrupt_after, tiny_llama
from tests.support.training.display import Lines, quiet


def settings(base, output, **changes):
    return SftConfig(
        **{
            "model": str(base),
            "dataset": "task:initials",
            "output": output,
            "heldout": 2,
            "steps": 4,
            "batch_size": 2,
            "learning_rate": 0.01,
            "calibration_prompts": 4,
            "max_new_tokens": 2,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


@pytest.fixture
def nothing_loads(monkeypatch):
    """Loading weights, or hashing them, fails the test."""

    def fail(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(models, "fingerprint", fail)


@pytest.mark.found
def test_an_existing_mask_is_not_overwritten(checkpoint, tmp_path, monkeypatch, nothing_loads):
    output = tmp_path / "m.bmt"
    output.write_bytes(b"precious")
    for resume in (False, True):
        with pytest.raises(OutputError, match="--overwrite"):
            sft.train(settings(checkpoint, output, resume=resume), quiet())
    assert output.read_bytes() == b"precious"
    output.rename(tmp_path / "m.bmt.history.json")
    with pytest.raises(OutputError, match="history"):
        sft.train(settings(checkpoint, output), quiet())


def test_overwrite_replaces_mask_and_history(checkpoint, tmp_path):
    output = tmp_path / "m.bmt"
    sft.train(settings(checkpoint, output), quiet())
    first = output.read_bytes()
    with pytest.raises(OutputError, match="finished"):
        sft.train(settings(checkpoint, output, resume=True), quiet())
    sft.train(settings(checkpoint, output, overwrite=True, seed=1), quiet())
    assert output.read_bytes() != first


def test_a_run_that_was_killed_while_it_wrote_its_output_resumes(checkpoint, tmp_path, monkeypatch):
    config = settings(checkpoint, tmp_path / "m.bmt")
    with monkeypatch.context() as patch:
        patch.setattr("bmt_trainer.methods.run_folder.RunFolder.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sft.train(config, quiet())
    whole = bmt_core.load(config.output)
    with pytest.raises(OutputError, match="exists"):
        sft.train(config, quiet())
    assert sft.train(dataclasses.replace(config, resume=True), quiet()) == whole


@pytest.mark.parametrize("place", ["folder", "below a file", "no permission"])
def test_an_output_that_cannot_be_written(checkpoint, tmp_path, monkeypatch, nothing_loads, place):
    output = tmp_path / "m.bmt"
    if place == "folder":
        output.mkdir()
    elif place == "below a file":
        (tmp_path / "file").touch()
        output = tmp_path / "file" / "m.bmt"
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError):
        sft.train(settings(checkpoint, output), quiet())


def test_a_missing_folder_is_made(checkpoint, tmp_path):
    output = tmp_path / "a" / "b" / "m.bmt"
    sft.train(settings(checkpoint, output, steps=1, heldout=0), quiet())
    assert output.exists()


def test_a_disk_without_room_for_a_checkpoint(tmp_path, monkeypatch):
    outputs.check_space(tmp_path, 3_000_000)
    assert not list(tmp_path.iterdir())

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        outputs.check_space(tmp_path, 3_000_000)
    assert not list(tmp_path.iterdir())


# As safetensors, torch.save and Python say it.
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    Exception("No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing"),
]


@pytest.mark.found
@pytest.mark.parametrize("error", FULL, ids=lambda e: type(e).__name__)
def test_a_full_disk_at_a_checkpoint_does_not_end_the_run(checkpoint, tmp_path, monkeypatch, error):
    whole = sft.train(settings(checkpoint, tmp_path / "w.bmt", steps=8), quiet())
    save, failed = sft.MaskedSFTTrainer._save_optimizer_and_scheduler, []

    def full(self, folder):
        if self.state.global_step in (4, 6) and len(failed) < 2:
            failed.append(folder)
            raise error
        save(self, folder)

    monkeypatch.setattr(sft.MaskedSFTTrainer, "_save_optimizer_and_scheduler", full)
    shown = Lines()
    assert sft.train(settings(checkpoint, tmp_path / "m.bmt", steps=8), shown) == whole
    assert len(failed) == 2
    assert "checkpoint of step 4 cannot be written" in shown.text
    assert "starts from checkpoint-2" in shown.text
    assert not (tmp_path / "m.bmt.run").exists()


def test_other_errors_at_a_checkpoint_are_not_hidden(tmp_path):
    assert not is_write_failure(TypeError("no space"))
    assert not is_write_failure(RuntimeError("shape mismatch"))

    def write():
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        Checkpoints(tmp_path, print).save(3, write)


def test_two_checkpoints_are_kept_and_partial_ones_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, print)
    (tmp_path / "checkpoint-3").mkdir()  # of a killed process: no manifest
    for step in (2, 4, 6):

        def write(folder=tmp_path / f"checkpoint-{step}"):
            folder.mkdir()
            (folder / "trainer_state.json").write_text("{}")

        assert checkpoints.save(step, write)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert checkpoints.newest_whole() == tmp_path / "checkpoint-6"


@pytest.mark.found
def test_a_model_that_is_masked_in_part_is_refused_before_it_is_loaded(
    tmp_path, nothing_loads, monkeypatch
):
    config = AutoConfig.for_model(
        "glm4_moe",
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    base = tmp_path / "moe"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    with pytest.raises(ExpertTensors, match="in 1 of 4 layers"):
        sft.train(settings(base, tmp_path / "m.bmt"), quiet())
    monkeypatch.undo()
    asked = settings(base, tmp_path / "m.bmt", targets=r"\.mlp\.gate_proj$", heldout=0)
    shown = Lines()
    mask = sft.train(asked, shown)
    assert [t.name for t in mask.tensors] == ["model.layers.0.mlp.gate_proj.weight"]
    assert "masking 1 of 4 layers, 2,048 of " in shown.text


def test_tensors_of_other_names_are_refused_before_the_weights(checkpoint, tmp_path, nothing_loads):
    """transformers renames the tensors of some checkpoints as it loads them."""
    base = shutil.copytree(checkpoint, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    renamed = {name.replace("model.", "transformer."): t for name, t in tensors.items()}
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseMismatch, match=r"gate_proj\.weight"):
        sft.train(settings(base, tmp_path / "m.bmt"), quiet())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_under_its_gates_is_the_base_bit_for_bit(dtype):
    model, bare = tiny_llama(dtype), tiny_llama(dtype)
    tokens = torch.arange(3, 40)[None]
    attached = attach(model)
    with torch.no_grad(), attached.state.use("off"):
        assert torch.equal(model(tokens).logits, bare(tokens).logits)
        options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(tokens, **options), bare.generate(tokens, **options))


def test_the_base_is_scored_under_its_gates(checkpoint, tmp_path, monkeypatch):
    order = []
    score = "bmt_trainer.methods.run_folder.HeldoutScores.__call__"
    monkeypatch.setattr(score, lambda self, name, examples=None: order.append(name))
    real = sft.pipeline.attach

    def spying(loaded):
        order.append("attach")
        return real(loaded)

    monkeypatch.setattr(sft.pipeline, "attach", spying)
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        sft.train(settings(checkpoint, tmp_path / "m.bmt"), quiet())
    assert order == ["attach", "base", "init"]


@pytest.mark.parametrize(
    ("method", "kind", "row", "changes", "words"),
    [
        (sft, SftConfig, {"prompt": "q{}"}, {}, "no completion"),
        (sft, SftConfig, {"prompt": "q{}", "completion": "a"}, {"max_length": 3}, "at most 3"),
        (grpo, GrpoConfig, {"prompt": "q{}"}, {}, "no answer"),
        (
            grpo,
            GrpoConfig,
            {"prompt": "q{}", "answer": "a"},
            {"reward": "BAD"},
            "returned str 'one'",
        ),
        (sdft, SdftConfig, {"prompt": "q{}"}, {}, "demonstration"),
    ],
)
def test_rows_and_rewards_are_refused_before_weights_are_loaded(
    checkpoint, tmp_path, monkeypatch, method, kind, row, changes, words
):
    def fail(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_model", fail)
    data, reward = tmp_path / "d.jsonl", tmp_path / "bad.py"
    lines = [json.dumps({k: v.format(n) for k, v in row.items()}) for n in range(8)]
    data.write_text("\n".join(lines))
    reward.write_text("def bad(completion, answer):\n    return 'one'\n")
    values = {"model": str(checkpoint), "dataset": str(data), "output": tmp_path / "m.bmt"}
    values |= {"heldout": 0, "steps": 1, "device": "cpu", **changes}
    if kind is not SftConfig:
        values |= {"validation": 0, "prompts_per_step": 2, "micro_batch": 2}
    if "reward" in changes:
        values["reward"] = f"{reward}:bad"
    with pytest.raises(TrainerError, match=words):
        method.train(kind(**values), quiet())
    assert not (tmp_path / "m.bmt.run").exists()


@pytest.mark.found
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_an_output_that_is_no_file_is_not_replaced(checkpoint, tmp_path, nothing_loads, kind):
    output = tmp_path / "out.bmt"
    os.mkfifo(output) if kind == "pipe" else output.symlink_to("absent.bmt")
    with pytest.raises(OutputError, match=r"out\.bmt is a (pipe|link)"):
        sft.train(settings(checkpoint, output, overwrite=True))
    assert output.is_fifo() or output.is_symlink()


_HOLDS = """
import sys, time
from pathlib import Path
from bmt_trainer.methods.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]), {"seed": 1}, resume=False)
print("held", flush=True)
time.sleep(300)
"""


@pytest.mark.found
@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_train_one_output(tmp_path, resume):
    output = tmp_path / "out.bmt"
    command = [sys.executable, "-c", _HOLDS, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="in use by another process"):
            RunFolder(output, {"seed": 1}, resume=resume)
        other.kill()
    RunFolder(output, {"seed": 1}, resume=resume)
