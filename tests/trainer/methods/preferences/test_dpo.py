"""DPO end to end with TRL on a tiny model: the reference, scores, resumption, errors."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import bmt_core
import pytest
import torch
from bmt_trainer.console import Display
from bmt_trainer.data.pairs import PairEncoder
from bmt_trainer.data.sources import load as load_data
from bmt_trainer.errors import ConfigError, DataError, ResumeError
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.config import DpoConfig
from bmt_trainer.methods.preferences import scores
from bmt_trainer.methods.preferences.dpo import train
from bmt_trainer.methods.preferences.scores import PairScore, log_probabilities
from bmt_trainer.methods.run_folder import RunFolder
from bmt_trainer.methods.trl_mixins import BaseReference
from bmt_trainer.models import load_model, load_tokenizer
from bmt_trainer.settings import build, read_yaml
from rich.console import Console
from trl.trainer.utils import add_fused_lm_head

from tests.support.tiny_model import interrupt_after, save_tiny_llama
from tests.support.training.display import quiet

ROOT = Path(__file__).resolve().parents[4]
STEPS = 4


def settings(checkpoint, output, **changes):
    return DpoConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:word-order?least=2&most=3",
            "output": output,
            "heldout": 6,
            "steps": STEPS,
            "batch_size": 2,
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


@pytest.fixture
def references(monkeypatch):
    """Arguments and log-probabilities of each call of the reference."""
    seen = []
    call = BaseReference.__call__

    def spying(self, *args, **kwargs):
        outputs = call(self, *args, **kwargs)
        assert not args
        seen.append((kwargs, outputs.log_probs))
        return outputs

    monkeypatch.setattr(BaseReference, "__call__", spying)
    return seen


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")]
)
def test_the_reference_is_the_base_bit_for_bit(tmp_path, references, dtype, precision):
    folder = save_tiny_llama(tmp_path / "base", dtype)
    train(settings(folder, tmp_path / "m.bmt", heldout=0, precision=precision), quiet())
    assert len(references) == STEPS
    base = load_model(folder).train()
    add_fused_lm_head(base)
    for arguments, found in references:
        assert len(arguments["input_ids"]) == 4  # two pairs, of two answers each
        answered = arguments["labels"][:, 1:] != -100
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            expected = base(**arguments).log_probs
            logits = base(arguments["input_ids"], arguments["attention_mask"]).logits
        assert torch.equal(found, expected)
        assert (found[answered] < 0).all()
        # By the base's own forward pass, without TRL's head.
        every = torch.log_softmax(logits[:, :-1].float(), -1)
        plain = every.gather(-1, arguments["input_ids"][:, 1:, None]).squeeze(-1)
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0.1}
        torch.testing.assert_close(found[answered].float(), plain[answered], **close)


def test_scores_of_the_base_are_the_plain_base_s(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    heldout = load_data("task:word-order", heldout=5, train=0, pairs=True).heldout
    pairs = [PairEncoder(tokenizer).encode(example).columns for example in heldout]
    plain = log_probabilities(load_model(checkpoint), pairs, tokenizer.pad_token_id)
    model = load_model(checkpoint)
    attached = attach(model)
    with torch.no_grad():
        for gate in attached.gates():
            gate.normal_()
    with attached.state.use("off"):
        assert log_probabilities(model, pairs, tokenizer.pad_token_id) == plain
    with attached.state.use("hard"):
        assert log_probabilities(model, pairs, tokenizer.pad_token_id) != plain
    # One pair alone, without padding, token by token.
    row = pairs[3]
    for key, sum_ in zip(("chosen_ids", "rejected_ids"), plain[3], strict=True):
        ids = torch.tensor([row["prompt_ids"] + row[key]])
        with torch.no_grad():
            every = torch.log_softmax(load_model(checkpoint)(ids).logits[0].double(), -1)
        first = len(row["prompt_ids"])
        one = sum(float(every[at - 1, ids[0, at]]) for at in range(first, ids.shape[1]))
        assert sum_ == pytest.approx(one, abs=1e-3)


def test_a_run_from_pairs_to_mask(checkpoint, tmp_path, monkeypatch):
    forwards = []
    forward = MaskedLinear.forward

    def spying(self, x):
        forwards.append((self.state.mode, torch.is_grad_enabled(), self.state.alpha))
        return forward(self, x)

    monkeypatch.setattr(MaskedLinear, "forward", spying)
    data = rows(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"Say {i}", "chosen": "yes", "rejected": "no"} for i in range(30)],
    )
    before = bmt_core.fingerprint(checkpoint)
    config = settings(
        checkpoint, tmp_path / "m.bmt", dataset=data, steps=30, beta=0.5, learning_rate=0.02
    )
    mask = train(config, quiet())

    assert bmt_core.load(tmp_path / "m.bmt", expect_base=before) == mask
    assert bmt_core.fingerprint(checkpoint) == before
    meta = mask.metadata
    assert (meta["method"], meta["train_examples"], meta["config"]["beta"]) == ("dpo", 24, 0.5)
    found = meta["scores"]
    assert set(found) == {"base", "init", "mask"}
    assert (found["base"]["margin"], found["base"]["margin_interval95"]) == (0, [0, 0])
    assert found["base"]["above_base"] == 0
    assert all(score["total"] == 6 for score in found.values())
    # Every pair asks for the same, so it is learnt.
    low, _ = found["mask"]["margin_interval95"]
    assert low > 0
    assert found["mask"]["above_base"] == 1

    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert history["scores"] == found
    assert history["steps"][0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert history["steps"][-1]["rewards/margins"] > 0
    assert meta["loss"] < math.log(2)

    # Loss forwards are soft, at Eq. 7's α; the reference's and all others are without gradients.
    assert {a for mode, _, a in forwards if mode == "soft"} == {
        sharpness(t, 30, 1e2, 1e3) for t in range(30)
    }
    assert {(mode, grad) for mode, grad, _ in forwards} == {
        ("soft", True),
        ("off", False),
        ("hard", False),
    }


def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, monkeypatch):
    more = {"gradient_accumulation": 2, "train_examples": 5}  # epochs, of which one ends early
    config = settings(checkpoint, tmp_path / "whole.bmt", **more)
    whole = train(config, quiet())
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    with pytest.raises(ResumeError, match=r"beta = 0\.1, not 0\.2"):
        train(dataclasses.replace(cut, resume=True, beta=0.2), quiet())
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert (tmp_path / "cut.bmt").read_bytes() == (tmp_path / "whole.bmt").read_bytes()
    assert resumed == whole
    assert dict(resumed.metadata) == dict(whole.metadata)


def test_another_rejected_answer_is_another_run(checkpoint, tmp_path, monkeypatch):
    made = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(8)]
    data = rows(tmp_path / "pairs.jsonl", made)
    config = settings(checkpoint, tmp_path / "m.bmt", dataset=data, heldout=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet())
    rows(tmp_path / "pairs.jsonl", [{**row, "rejected": "c"} for row in made])
    with pytest.raises(ResumeError, match="training data"):
        train(dataclasses.replace(config, resume=True), quiet())


def test_lean_is_chosen_by_the_margin(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "m.bmt", lean="auto", max_new_tokens=4)
    mask = train(config, quiet())
    found = mask.metadata["scores"]
    assert found["mask"] == found["lean" if mask.metadata["lean"] else "full"]
    assert {"lean", "full"} <= mask.metadata["forward_kl"].keys()


def test_pairs_that_are_too_long(checkpoint, tmp_path):
    """A long rejected answer is left out, replaced in training, and said when held out."""
    made = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b" * (400 if i % 2 else 1)}
        for i in range(24)
    ]
    data = rows(tmp_path / "pairs.jsonl", made)
    shown = io.StringIO()
    config = settings(checkpoint, tmp_path / "m.bmt", dataset=data, heldout=8, max_length=80)
    mask = train(config, Display(Console(file=shown, width=200)))
    left = sum(
        int(line.split()[2]) for line in shown.getvalue().splitlines() if "held out: " in line
    )
    assert 0 < left < 8
    assert mask.metadata["scores"]["mask"]["total"] == 8 - left
    assert mask.metadata["train_examples"] == 12 - (8 - left)
    with pytest.raises(DataError, match="no training pair of at most 5 tokens"):
        train(dataclasses.replace(config, max_length=5, overwrite=True), quiet())


def test_settings_that_dpo_cannot_keep(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="beta"):
        settings(checkpoint, tmp_path / "m.bmt", beta=0)
    with pytest.raises(ConfigError, match="thoughts: off"):
        settings(checkpoint, tmp_path / "m.bmt", thoughts="off")


def test_rows_that_are_no_pairs_end_a_run_before_a_weight_is_loaded(checkpoint, tmp_path):
    for name in ("task:initials", rows(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}])):
        with pytest.raises(DataError, match="preference pair"):
            train(settings(checkpoint, tmp_path / "m.bmt", dataset=name), quiet())
    assert not (tmp_path / "m.bmt.run").exists()


def test_a_score_of_pairs():
    base = [(-1.0, -2.0), (-2.0, -1.0), (-3.0, -3.0)]
    score = PairScore.of([(-1.0, -4.0), (-2.0, -1.0), (-3.0, -4.0)], base)
    assert (score.right, score.above_base, score.total, score.margin) == (2, 2, 3, 1.0)
    low, high = score.margin_interval
    assert low < 1 < high
    # Student's t: 4.3027 x 1 / sqrt(3).
    assert high - 1 == pytest.approx(2.484, abs=1e-3)
    assert PairScore.of(base, base).margin_interval == (0, 0)
    assert score.chosen == 0
    assert PairScore.of([(-3.0, -9.0)] * 3, base).chosen == -1


def test_chosen_answers_that_lose_are_said(tmp_path):
    """The loss falls if both answers lose, too, and the rejected one more."""
    shown = io.StringIO()
    display = Display(Console(file=shown, width=400))
    run = RunFolder(tmp_path / "m.bmt", {}, resume=False)
    run.note("reference_log_probabilities", [(-1.0, -1.0)] * 4)
    runs = (("init", -5.0, -5.0), ("full", -0.5, -5.0), ("lean", -5.0, 3.0), ("mask", -5.0, -5.0))
    for name, chosen, apart in runs:
        with pytest.MonkeyPatch.context() as patch:
            found = [(chosen - at / 9, chosen + apart) for at in range(4)]
            patch.setattr(scores, "log_probabilities", lambda *_, found=found: found)
            scores.PairScores(None, [{}] * 4, 0, run, display)(name)
    worse, warned = (x for x in shown.getvalue().splitlines() if x.startswith("warning: "))
    assert "by 4.17 nats, and the rejected ones lost more." in warned
    assert "by 4.17 nats, and the rejected ones did not lose more." in worse
    assert run.notes["full"]["chosen"] > 0


def test_one_pair_is_no_evidence_of_a_loss(tmp_path, monkeypatch):
    shown = io.StringIO()
    run = RunFolder(tmp_path / "m.bmt", {}, resume=False)
    run.note("reference_log_probabilities", [(-1.0, -1.0)])
    monkeypatch.setattr(scores, "log_probabilities", lambda *_: [(-5.0, -9.0)])
    scores.PairScores(None, [{}], 0, run, Display(Console(file=shown, width=400)))("mask")
    assert "warning" not in shown.getvalue()


def test_the_recipe_is_valid():
    values = read_yaml(ROOT / "recipes/dpo-word-order.yaml")
    assert build(DpoConfig, {**values, "model": "m", "output": "o.bmt"}).heldout == 200
