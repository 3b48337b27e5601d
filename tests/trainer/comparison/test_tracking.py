"""Tracking in training: no effect on the mask, and complete rows after an interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from bmt_trainer.comparison import measures, plan, report
from bmt_trainer.comparison.runner import run
from bmt_trainer.evaluation.kl import divergence, forward_kl
from bmt_trainer.masking.attach import attach
from transformers import Trainer

from tests.support.tiny_model import interrupt_after, tiny_llama
from tests.support.training.display import Lines, quiet


def planned(checkpoint, output, method="bmt"):
    return plan.read(
        None,
        {
            **{"trainer": "sft", "methods": method, "model": str(checkpoint), "output": output},
            **{"dataset": "task:initials", "heldout": 4, "steps": 5, "batch_size": 2},
            **{"learning_rate": 0.01, "calibration_prompts": 4, "max_new_tokens": 4},
            **{"checkpoint_every": 2, "device": "cpu", "track_every": 2},
            **{"retention": "task:arithmetic", "retention_examples": 3},
        },
    )


@pytest.mark.parametrize("method", ["bmt", "full", "lora-1", "mth-99"])
def test_a_resumed_run_has_all_its_rows(checkpoint, tmp_path, monkeypatch, method):
    [whole] = run(planned(checkpoint, tmp_path / "whole", method), quiet())
    assert [row["step"] for row in whole["track"]] == [0, 2, 4, 5]
    # A mask deletes from the start; others begin as the base, to the last bit.
    assert (whole["track"][0]["kl_token"] == 0) == (method != "bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)  # looked at, but not yet in a checkpoint
        with pytest.raises(KeyboardInterrupt):
            run(planned(checkpoint, tmp_path / "cut", method), quiet())
    [folder] = (tmp_path / "cut").glob("*.run")
    notes = json.loads((folder / "run.json").read_text())["notes"]
    assert [row["step"] for row in notes["track"]] == [0, 2, 4]
    begun = spied_resumes(monkeypatch)
    [resumed] = run(planned(checkpoint, tmp_path / "cut", method), quiet())
    assert begun == ["checkpoint-2"]
    assert not folder.exists()
    del resumed["seconds"], whole["seconds"]
    assert resumed == whole


def spied_resumes(monkeypatch):
    """The checkpoints that trainers resume from, in order."""
    resumed, train = [], Trainer.train

    def spied(self, resume_from_checkpoint=None, **given):
        resumed.append(resume_from_checkpoint and Path(resume_from_checkpoint).name)
        return train(self, resume_from_checkpoint=resume_from_checkpoint, **given)

    monkeypatch.setattr(Trainer, "train", spied)
    return resumed


def test_tracking_changes_nothing(checkpoint, tmp_path):
    looked = planned(checkpoint, tmp_path / "a")
    settings = {**looked.settings, "trainer": "sft", "methods": "bmt", "model": str(checkpoint)}
    blind = plan.read(None, {**settings, "dataset": "task:initials", "output": tmp_path / "b"})
    [a], [b] = run(looked, quiet()), run(blind, quiet())
    assert "track" not in b
    assert a["digest"] == b["digest"]


def test_divergence_of_two_models_is_that_of_one_with_its_mask_off():
    """A second copy of the base, which baselines need, equals the model with its mask off."""
    model, base = tiny_llama(), tiny_llama()
    attached = attach(model)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.gate_logits.view(-1)[::7] = -1
    torch.manual_seed(0)
    texts = [(torch.randint(3, 200, (n,)).tolist(), [5, 6, 7]) for n in (4, 9, 2)]
    own = forward_kl(model, attached, texts, 0)
    two = divergence(
        (base, lambda: attached.state.use("off")),
        (model, lambda: attached.state.use("hard")),
        texts,
        0,
    )
    assert own.per_token > 0
    assert two.per_token == pytest.approx(own.per_token, rel=1e-6)


@pytest.mark.parametrize(("trainer", "processes"), [("sdft", 1), ("sft", 2)])
def test_runs_without_checkpoints(checkpoint, tmp_path, monkeypatch, trainer, processes):
    """Checkpoints would lose TRL's EMA teacher, and several processes write none."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    made = {}
    for method in ("bmt", "full"):
        given = {"trainer": trainer, "methods": method, "model": str(checkpoint)}
        given |= {"dataset": "task:arithmetic", "output": tmp_path, "checkpoint_every": 2}
        [cell] = plan.read(None, given).cells()
        config = cell.config()
        made[method] = config.checkpoint_every, config.resume
    masks = (2, True) if processes == 1 else (0, False)
    assert made == {"bmt": masks, "full": (0, False)}


@pytest.mark.found
def test_a_failed_analysis_loses_no_run(checkpoint, tmp_path, monkeypatch):
    """Geometry and sets fail after the last step, the other skill's score during training."""
    looks = []

    def retention_score(plan, loaded, tuned):
        def score():
            looks.append(1)
            if len(looks) > 1:
                raise OSError("no network")
            return {"retention": 0.5, "retention_lenient": 0.5, "n": 2}

        return score

    def broken(*_):
        raise RuntimeError("no convergence")

    monkeypatch.setattr(measures, "retention_score", retention_score)
    monkeypatch.setattr(measures, "geometry", broken)
    monkeypatch.setattr("bmt_trainer.comparison.runner.score_suites", broken)
    made = planned(checkpoint, tmp_path)
    made = dataclasses.replace(made, geometry=True, suites="gsm8k", suites_data=tmp_path)
    display = Lines()
    [result] = run(made, display)
    assert result["failed"] == {
        "suites": "RuntimeError: no convergence",
        "geometry": "RuntimeError: no convergence",
    }
    assert len(result["right"]) == 4
    assert [("retention" in row) for row in result["track"]] == [True, False, False, False]
    assert "retention failed at step 2, and training goes on: no network" in display.text
    assert "geometry failed, and the result is kept without it" in display.text
    assert run(made, quiet()) == [result]  # kept
    report.write([tmp_path], tmp_path / "out", "t")
