"""Resumed runs: changed contents are named, damaged checkpoints are left for the one before."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest
from bmt_trainer.errors import ResumeError
from bmt_trainer.methods import grpo, sft
from bmt_trainer.methods.config import GrpoConfig, SftConfig
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import interrupt_after
from tests.support.training.display import Lines, quiet


@pytest.fixture
def base(checkpoint, tmp_path):
    """A copy of the checkpoint, to be changed."""
    return shutil.copytree(checkpoint, tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, range(40))
    return path


def write(path, numbers, answer="{}"):
    rows = [{"prompt": f"Say {n}.", "completion": answer.format(n)} for n in numbers]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def settings(base, data, output, **changes):
    return SftConfig(
        **{
            "model": str(base),
            "dataset": str(data),
            "output": output,
            "heldout": 4,
            "steps": 8,
            "batch_size": 2,
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "max_new_tokens": 2,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


def interrupted(monkeypatch, train, config, step=5):
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet())
    return dataclasses.replace(config, resume=True)


def change_weight(base):
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CHANGES = {
    "training data": lambda base, data: write(data, range(40), "{}!"),
    "data": lambda base, data: write(data, range(1, 41)),
    "chat template": lambda base, data: (base / "chat_template.jinja").write_text(
        (base / "chat_template.jinja").read_text().replace("assistant", "bot")
    ),
    "base's configuration": lambda base, data: change_json(base / "config.json", rms_norm_eps=1e-3),
    "tokenizer": lambda base, data: change_json(base / "tokenizer_config.json", extra="word"),
    "base": lambda base, data: change_weight(base),
}


@pytest.mark.found
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_content_is_named(base, data, tmp_path, monkeypatch, what):
    config = interrupted(monkeypatch, sft.train, settings(base, data, tmp_path / "m.bmt"))
    CHANGES[what](base, data)
    with pytest.raises(ResumeError, match=f"another .*{what}"):
        sft.train(config, quiet())


def test_a_file_that_moved_with_equal_rows_is_the_same_data(base, data, tmp_path, monkeypatch):
    """Its name is a setting; rows in another spelling are equal rows."""
    config = interrupted(monkeypatch, sft.train, settings(base, data, tmp_path / "m.bmt"))
    data.write_text(data.read_text().replace('": "', '":   "'))
    sft.train(config, quiet())


@pytest.mark.found
@pytest.mark.parametrize("setting", ["reward", "grader"])
def test_a_changed_function_of_rewards_is_named(base, data, tmp_path, monkeypatch, setting):
    code = tmp_path / "r.py"
    code.write_text("def f(text, answer):\n    return float(len(text) % 2)\n")
    if setting == "grader":
        config = settings(base, data, tmp_path / "m.bmt", grader=f"{code}:f")
        train = sft.train
    else:
        shared = settings(base, data, tmp_path / "m.bmt")
        values = {k: getattr(shared, k) for k in ("model", "dataset", "output", "steps", "device")}
        own = {"prompts_per_step": 2, "completions": 2, "micro_batch": 2, "validation": 0}
        few = {"heldout": 0, "max_new_tokens": 4, "calibration_prompts": 8, "checkpoint_every": 2}
        config = GrpoConfig(**values, **own, **few, reward=f"{code}:f")
        train = grpo.train
    config = interrupted(monkeypatch, train, config)
    code.write_text(code.read_text().replace("% 2", "% 3"))
    with pytest.raises(ResumeError, match=f"another {setting}"):
        train(config, quiet())


def test_a_folder_of_a_build_without_digests_is_said(base, data, tmp_path, monkeypatch):
    config = interrupted(monkeypatch, sft.train, settings(base, data, tmp_path / "m.bmt"))
    run = tmp_path / "m.bmt.run"
    kept = json.loads((run / "run.json").read_text())
    del kept["contents"]
    (run / "run.json").write_text(json.dumps(kept))
    for manifest in run.glob("checkpoint-*/manifest.json"):
        manifest.unlink()
    shown = Lines()
    sft.train(config, shown)
    assert "no digests" in shown.text
    assert "resuming at step 4" in shown.text


def spoilt_files(checkpoint_folder):
    return sorted(p.name for p in checkpoint_folder.iterdir())


@pytest.mark.found
def test_any_damaged_file_of_the_newest_checkpoint(base, data, tmp_path, monkeypatch):
    config = settings(base, data, tmp_path / "whole.bmt")
    whole = sft.train(config, quiet())
    config = dataclasses.replace(config, output=tmp_path / "m.bmt")
    config = interrupted(monkeypatch, sft.train, config)
    run = tmp_path / "m.bmt.run"
    saved = shutil.copytree(run, tmp_path / "saved")
    names = spoilt_files(run / "checkpoint-4")
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json"} <= set(names)
    # 3.5 MB of a checkpoint were the tokenizer's, which is the base's.
    assert not [n for n in names if n.startswith("tokenizer")]
    for number, name in enumerate(names):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(saved, run)
        (tmp_path / "m.bmt").unlink(missing_ok=True)
        file = run / "checkpoint-4" / name
        if number % 2:
            os.truncate(file, file.stat().st_size // 2)
        else:
            flipped = bytearray(file.read_bytes())
            flipped[len(flipped) // 2] ^= 0xFF
            file.write_bytes(flipped)
        shown = Lines()
        assert sft.train(config, shown) == whole
        assert "checkpoint-4 is damaged" in shown.text
        assert "resuming at step 2" in shown.text


@pytest.mark.found
def test_without_a_whole_checkpoint_the_run_starts_over(base, data, tmp_path, monkeypatch):
    config = settings(base, data, tmp_path / "whole.bmt")
    whole = sft.train(config, quiet())
    config = dataclasses.replace(config, output=tmp_path / "m.bmt")
    config = interrupted(monkeypatch, sft.train, config)
    for folder in (tmp_path / "m.bmt.run").glob("checkpoint-*"):
        (folder / "optimizer.pt").write_bytes(b"")
    shown = Lines()
    assert sft.train(config, shown) == whole
    assert "starts over at step 0" in shown.text


def test_the_history_of_a_killed_run_is_on_disk(base, data, tmp_path, monkeypatch):
    config = interrupted(monkeypatch, sft.train, settings(base, data, tmp_path / "m.bmt"))
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [step["step"] for step in history["steps"]] == [1, 2, 3, 4]
    sft.train(config, quiet())
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [step["step"] for step in history["steps"]] == list(range(1, 9))
    assert all(step["loss"] > 0 for step in history["steps"])


def test_a_run_that_ended_after_its_last_step_trains_no_further(base, data, tmp_path, monkeypatch):
    config = settings(base, data, tmp_path / "m.bmt")
    whole = sft.train(config, quiet())
    config = dataclasses.replace(config, output=tmp_path / "n.bmt")
    with monkeypatch.context() as patch:
        patch.setattr("bmt_trainer.methods.finish._score_mask", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sft.train(config, quiet())
    assert (tmp_path / "n.bmt.run" / "checkpoint-8").exists()
    assert sft.train(dataclasses.replace(config, resume=True), quiet()) == whole
