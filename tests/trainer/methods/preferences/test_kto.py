"""KTO end to end with TRL on a tiny model: the reference, the loss, batches, resumption, scores."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import bmt_core
import pytest
import torch
from bmt_trainer.errors import ConfigError, DataError, ResumeError
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.methods.config import KtoConfig
from bmt_trainer.methods.preferences.kto import MaskedKTOTrainer, in_batches, train
from bmt_trainer.methods.preferences.labels import LabelScore
from bmt_trainer.methods.preferences.losses import kto_losses, with_partners
from bmt_trainer.methods.trl_mixins import BaseReference
from bmt_trainer.models import load_model
from bmt_trainer.settings import build, read_yaml
from trl.trainer.utils import add_fused_lm_head

from tests.support.tiny_model import interrupt_after, save_tiny_llama
from tests.support.training.display import Lines, quiet

ROOT = Path(__file__).resolve().parents[4]
STEPS = 4


def settings(checkpoint, output, **changes):
    return KtoConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:word-order?least=2&most=3",
            "output": output,
            "heldout": 4,
            "steps": STEPS,
            "batch_size": 4,
            # So that a handful of steps moves gates over the threshold.
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


def rows(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def labeled(count, **more):
    """Rows of one label each; the wanted answer is yes."""
    return [
        {"prompt": f"Say {i}", "completion": "no" if i % 2 else "yes", "label": not i % 2, **more}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")]
)
def test_the_reference_is_the_base_bit_for_bit(tmp_path, monkeypatch, dtype, precision):
    """Of the answers and of the mismatched ones, in the policy's batches and arithmetic."""
    seen = []
    call = BaseReference.__call__

    def spying(self, **kwargs):
        outputs = call(self, **kwargs)
        seen.append((kwargs, outputs.log_probs))
        return outputs

    monkeypatch.setattr(BaseReference, "__call__", spying)
    folder = save_tiny_llama(tmp_path / "base", dtype)
    train(settings(folder, tmp_path / "m.bmt", heldout=0, precision=precision), quiet())
    assert len(seen) == 2 * STEPS
    base = load_model(folder).train()
    add_fused_lm_head(base)
    for arguments, found in seen:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            assert torch.equal(found, base(**arguments).log_probs)
        assert (found[arguments["labels"][:, 1:] != -100] < 0).all()


def test_the_loss_is_that_of_the_papers_equation_in_fp64(tmp_path, monkeypatch):
    """Log-probabilities of a plain model with weights W σ(αG), and Python's arithmetic."""
    folder = save_tiny_llama(tmp_path / "base", torch.float32)
    seen = []
    compute = MaskedKTOTrainer._compute_loss

    def spying(self, model, inputs, return_outputs):
        loss = compute(self, model, inputs, return_outputs)
        state = self.attached.state
        gates = {name: g.gate_logits.detach().double() for name, g in self.attached.layers.items()}
        seen.append((dict(inputs), state.alpha, gates, float(loss)))
        return loss

    monkeypatch.setattr(MaskedKTOTrainer, "_compute_loss", spying)
    data = rows(tmp_path / "x.jsonl", labeled(11))
    config = settings(
        folder,
        tmp_path / "m.bmt",
        **{"dataset": data, "heldout": 0, "precision": "fp32", "beta": 0.5, "batch_size": 3},
        **{"desirable_weight": 1.25, "undesirable_weight": 0.75, "reg_lambda": 0.0},
    )
    train(config, quiet())
    assert len(seen) == STEPS
    base = load_model(folder).double().eval()
    for at, (inputs, alpha, gates, loss) in enumerate(seen):
        assert alpha == sharpness(at, STEPS, 1e2, 1e3)
        policy = load_model(folder).double().eval()
        with torch.no_grad():
            for name, gate in gates.items():
                policy.get_submodule(name).weight.mul_(torch.sigmoid(alpha * gate))
        ratios, apart = (
            [
                p - q
                for p, q in zip(sums(policy, inputs, kind), sums(base, inputs, kind), strict=True)
            ]
            for kind in ("", "KL_")
        )
        point = max(0.0, sum(apart) / len(apart))
        losses = []
        for ratio, label in zip(ratios, inputs["label"].tolist(), strict=True):
            sign, weight = (1, 1.25) if label else (-1, 0.75)
            losses.append(weight * (1 - 1 / (1 + math.exp(-0.5 * sign * (ratio - point)))))
        assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert kto_losses(ratios, inputs["label"].tolist(), point, config) == pytest.approx(losses)
    # Training moves the answers, so the equation is tried away from its first value.
    assert abs(ratios[0]) > 1e-3


def sums(model, inputs, kind):
    """Log-probabilities of a batch's answers, token by token, without padding."""
    found = []
    for ids, attend, answered in zip(
        *(inputs[f"{kind}{name}"] for name in ("input_ids", "attention_mask", "completion_mask")),
        strict=True,
    ):
        ids = ids[: int(attend.sum())]
        with torch.no_grad():
            every = torch.log_softmax(model(ids[None]).logits[0], -1)
        found.append(
            sum(float(every[at - 1, ids[at]]) for at in range(1, len(ids)) if answered[at])
        )
    return found


def test_a_run_from_answers_to_mask(checkpoint, tmp_path):
    data = rows(tmp_path / "x.jsonl", labeled(40))
    before = bmt_core.fingerprint(checkpoint)
    display = Lines()
    config = settings(
        checkpoint, tmp_path / "m.bmt", dataset=data, steps=30, beta=0.5, learning_rate=0.02,
        heldout=10,
    )  # fmt: skip
    mask = train(config, display)
    assert bmt_core.load(tmp_path / "m.bmt", expect_base=before) == mask
    assert bmt_core.fingerprint(checkpoint) == before
    meta = mask.metadata
    assert (meta["method"], meta["train_examples"], meta["config"]["beta"]) == ("kto", 30, 0.5)
    found = meta["scores"]
    assert set(found) == {"base", "init", "mask"}
    assert (found["base"]["right"], found["base"]["gain"]) == (0, 0)
    assert found["base"]["gain_interval95"] == [0, 0]
    assert found["mask"]["gain_interval95"][0] > 0
    assert found["mask"]["accuracy"] > 0.7
    assert found["mask"]["wanted"] > found["mask"]["unwanted"]
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert history["scores"] == found
    first, last = history["steps"][0], history["steps"][-1]
    assert first["loss"] == pytest.approx(0.5, abs=0.03)
    assert last["loss"] < first["loss"]
    assert last["kl"] >= 0
    assert "labels: " in display.text


def test_a_pair_is_two_answers(checkpoint, tmp_path):
    """Paired rows give the run of the same rows as labeled answers."""
    made = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(8)]
    apart = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in made
        for key in ("chosen", "rejected")
    ]
    masks = []
    for name, given in (("pairs", made), ("apart", apart)):
        data = rows(tmp_path / f"{name}.jsonl", given)
        config = settings(
            checkpoint, tmp_path / f"{name}.bmt", dataset=data, heldout=3, train_examples=100
        )
        masks.append(train(config, quiet()))
        # Held out by prompt: both answers of each.
        assert masks[-1].metadata["scores"]["mask"]["total"] == 6
        assert masks[-1].metadata["scores"]["mask"]["labeled_wanted"] == 3
        assert masks[-1].metadata["train_examples"] == 10


def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, monkeypatch):
    more = {"gradient_accumulation": 2, "train_examples": 5}
    config = settings(checkpoint, tmp_path / "whole.bmt", **more)
    whole = train(config, quiet())
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    with pytest.raises(ResumeError, match=r"undesirable_weight = 1\.0, not 2\.0"):
        train(dataclasses.replace(cut, resume=True, undesirable_weight=2), quiet())
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert (tmp_path / "cut.bmt").read_bytes() == (tmp_path / "whole.bmt").read_bytes()
    assert dict(resumed.metadata) == dict(whole.metadata)


def test_another_label_is_another_run(checkpoint, tmp_path, monkeypatch):
    data = rows(tmp_path / "x.jsonl", labeled(12))
    config = settings(checkpoint, tmp_path / "m.bmt", dataset=data, heldout=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet())
    rows(tmp_path / "x.jsonl", [{**row, "label": not row["label"]} for row in labeled(12)])
    with pytest.raises(ResumeError, match="data"):
        train(dataclasses.replace(config, resume=True), quiet())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([*labeled(6), *[{"prompt": "q", "completion": "a"}]], r"line 7: label: missing"),
        ([*labeled(6), {"prompt": "q", "completion": "a", "label": 0.7}], r"line 7: label: 0\.7"),
        ([*labeled(6), {"prompt": "q", "completion": " ", "label": True}], "line 7: completion"),
    ],
)
def test_rows_are_refused_before_a_weight_is_loaded(checkpoint, tmp_path, made, words):
    data = rows(tmp_path / "x.jsonl", made)
    with pytest.raises(DataError, match=words):
        train(settings(checkpoint, tmp_path / "m.bmt", dataset=data), quiet())
    assert not (tmp_path / "m.bmt.run").exists()


def test_a_task_without_labels_is_refused(checkpoint, tmp_path):
    with pytest.raises(DataError, match="neither labels nor rejected answers"):
        train(settings(checkpoint, tmp_path / "m.bmt", dataset="task:initials"), quiet())


def test_settings_that_kto_cannot_keep(checkpoint, tmp_path):
    for changes, words in (
        ({"batch_size": 1}, "batch_size: 1 is below 2"),
        ({"desirable_weight": 0}, "desirable_weight"),
        ({"thoughts": "off"}, "thoughts: off"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings(checkpoint, tmp_path / "m.bmt", **changes)


def test_labels_out_of_balance_are_said(checkpoint, tmp_path):
    made = [{**row, "label": bool(i % 4)} for i, row in enumerate(labeled(16))]
    made.append({"prompt": "Say 0", "completion": "yes", "label": True})
    data = rows(tmp_path / "x.jsonl", made)
    display = Lines()
    options = {"dataset": data, "heldout": 0, "steps": 1, "checkpoint_every": 0}
    options["train_examples"] = 100
    train(settings(checkpoint, tmp_path / "m.bmt", **options), display)
    assert "labels: 13 answers are wanted, 4 are not" in display.text
    assert "weigh 3.25 times" in display.text
    assert "desirable_weight 0.308 to 0.41" in display.text
    assert "as wanted and as unwanted: 1" in display.text
    rows(tmp_path / "x.jsonl", [row for row in made if row["label"]])
    display = Lines()
    train(settings(checkpoint, tmp_path / "n.bmt", **options), display)
    assert "no answer is unwanted" in display.text


def test_every_batch_is_full_and_pairs_prompts_with_answers_to_others():
    made = [
        {"prompt_ids": [at // 2], "completion_ids": [100 + at], "label": at % 2 == 0}
        for at in range(10)
    ]
    laid = in_batches(made, 4, 7, 0)
    assert len(laid) == 28
    epochs = [row["completion_ids"][0] for row in laid]
    assert sorted(epochs[:10]) == sorted(epochs[10:20]) == list(range(100, 110))
    assert epochs[:10] != epochs[10:20]
    assert laid == in_batches(made, 4, 7, 0)
    prompts = {row["completion_ids"][0]: row["prompt_ids"] for row in made}
    for at, row in enumerate(laid):
        batch = laid[at // 4 * 4 : at // 4 * 4 + 4]
        [partner] = row["KL_completion_ids"]
        assert [partner] in [other["completion_ids"] for other in batch]
        if any(other["prompt_ids"] != row["prompt_ids"] for other in batch):
            assert prompts[partner] != row["prompt_ids"]
    alone = [{"prompt_ids": [1], "completion_ids": [at]} for at in range(3)]
    assert [row["KL_completion_ids"] for row in with_partners(alone)] == [[2], [0], [1]]


def test_a_score_of_labeled_answers():
    score = LabelScore.of([-1.0, -4.0, -2.0], [-2.0, -3.0, -1.5], [True, False, True])
    assert (score.right, score.total, score.wanted) == (2, 3, 2)
    assert score.gain == pytest.approx((1 + 1 - 0.5) / 3)
    assert (score.up[0], score.down[0]) == (0.25, -1)
    assert LabelScore.of([-1.0], [-1.0], [False]).to_json().keys().isdisjoint({"wanted"})


def test_the_recipe_is_valid():
    values = read_yaml(ROOT / "recipes/kto-word-order.yaml")
    assert build(KtoConfig, {**values, "model": "m", "output": "o.bmt"}).heldout == 200
