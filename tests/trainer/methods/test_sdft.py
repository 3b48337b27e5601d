"""SDFT end to end with TRL on a tiny model: prompts and masks of student and teacher."""

from __future__ import annotations

import dataclasses
import json
import math

import bmt_core
import bmt_trainer.console
import bmt_trainer.methods.sdft
import bmt_trainer.methods.trl_mixins
import pytest
import torch
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.masking.equations import hard_weight, sharpness
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.config import TEACHER_PROMPT, SdftConfig
from bmt_trainer.methods.sdft import teacher_example, train
from bmt_trainer.models import load_tokenizer
from safetensors import safe_open

from tests.support.tiny_model import interrupt_after
from tests.support.training.display import quiet

STEPS = 4
SECRET = "Zebras: "


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Questions whose demonstrations begin with a word that stands nowhere else."""
    path = tmp_path_factory.mktemp("data") / "shown.jsonl"
    rows = [
        {"prompt": f"Say {n}.", "completion": str(n), "demonstration": f"{SECRET}{n}"}
        for n in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(checkpoint, dataset, output, **changes):
    return SdftConfig(
        **{
            "model": str(checkpoint),
            "dataset": str(dataset),
            "output": output,
            "heldout": 4,
            "validation": 4,
            "validate_every": 2,
            "steps": STEPS,
            "prompts_per_step": 4,
            "micro_batch": 2,
            "learning_rate": 0.02,
            "calibration_prompts": 8,
            "max_new_tokens": 8,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


@dataclasses.dataclass
class Seen:
    """Forward passes of the masked layers, and of the whole model."""

    layers: list = dataclasses.field(default_factory=list)
    texts: list = dataclasses.field(default_factory=list)


@pytest.fixture
def seen(monkeypatch, checkpoint):
    """Forward passes in training, not in evaluation."""
    spy = Seen()
    tokenizer = load_tokenizer(checkpoint)
    forward, fit = MaskedLinear.forward, bmt_trainer.methods.sdft.fit

    def spying_forward(self, x):
        layer = (self.state.mode, torch.is_grad_enabled(), self.state.alpha, self.teacher_logits)
        spy.layers.append(layer)
        return forward(self, x)

    def spying_fit(config, loaded, attached, *rest):
        def look(module, args, kwargs):
            mode = attached.state.mode
            rows = kwargs["input_ids"]
            spy.texts += [(mode, tokenizer.decode(row)) for row in rows]

        handle = loaded.model.register_forward_pre_hook(look, with_kwargs=True)
        monkeypatch.setattr(MaskedLinear, "forward", spying_forward)
        try:
            return fit(config, loaded, attached, *rest)
        finally:
            handle.remove()
            monkeypatch.setattr(MaskedLinear, "forward", forward)

    monkeypatch.setattr(bmt_trainer.methods.sdft, "fit", spying_fit)
    return spy


def test_rollouts_and_teacher_are_hard_and_the_student_is_soft(
    checkpoint, dataset, tmp_path, seen, monkeypatch
):
    before = bmt_core.fingerprint(checkpoint)
    teachers = []
    teach = MaskedLinear.update_teacher
    monkeypatch.setattr(
        MaskedLinear,
        "update_teacher",
        lambda self, rate: (
            teachers.append((self.teacher_logits.clone(), self.gate_logits.detach().clone())),
            teach(self, rate),
            teachers.append(self.teacher_logits.clone()),
        ),
    )
    config = settings(checkpoint, dataset, tmp_path / "m.bmt", validation=0)
    mask = train(config, quiet())

    kinds = {(mode, grad) for mode, grad, *_ in seen.layers}
    assert kinds == {("hard", False), ("teacher", False), ("soft", True)}
    # Two layers, two micro-batches a step, at that step's sharpness.
    alphas = [alpha for mode, _, alpha, _ in seen.layers if mode == "soft"]
    assert alphas == [sharpness(t, STEPS, 1e2, 1e4) for t in range(STEPS) for _ in range(4)]

    # The demonstration is the teacher's alone; both read the same completion.
    texts = {mode: [t for m, t in seen.texts if m == mode] for mode in ("hard", "teacher", "soft")}
    assert all(SECRET in text for text in texts["teacher"])
    assert not any(SECRET in text for text in texts["hard"] + texts["soft"])
    for student, teacher in zip(texts["soft"], texts["teacher"], strict=True):
        ends = [t.partition("<|im_start|>assistant\n")[2] for t in (student, teacher)]
        assert ends[0] == ends[1]

    # Its gates follow by γ after each step, two layers, and begin where the student does.
    assert len(teachers) == 2 * 2 * STEPS
    for (old, student), new in zip(teachers[::2], teachers[1::2], strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * student)
    assert mask.metadata["method"] == "sdft"
    assert bmt_core.fingerprint(checkpoint) == before


def test_the_teachers_mask_is_hard():
    layer = MaskedLinear.wrap(
        torch.nn.Linear(4, 3, bias=False), bmt_trainer.masking.masked_linear.MaskState()
    )
    with pytest.raises(ValueError, match="no teacher"):
        layer.effective_weight("teacher")
    with torch.no_grad():
        layer.gate_logits[0] = -1
    layer.start_teacher()
    with torch.no_grad():
        layer.gate_logits.fill_(-1)
    assert torch.equal(
        layer.effective_weight("teacher"), hard_weight(layer.weight, layer.teacher_logits)
    )
    assert not layer.effective_weight("teacher")[0].any()
    assert layer.effective_weight("teacher")[1:].all()
    assert [p.requires_grad for p in (layer.gate_logits, layer.teacher_logits)] == [True, False]


def test_the_loss_is_forward_kl_over_the_vocabulary(checkpoint, dataset, tmp_path, monkeypatch):
    """TRL's loss at the settings that we give it, against Eq. 5 written out."""
    import trl.experimental.sdft.sdft_trainer as theirs

    compute = theirs.SDFTTrainer._compute_self_distillation_loss
    pairs = []

    def spying(self, model, inputs, logits):
        loss = compute(self, model, inputs, logits)
        p, q = (
            torch.log_softmax(x.float(), -1) for x in (logits.teacher_logits, logits.student_logits)
        )
        kl = (p.exp() * (p - q)).sum(-1)
        keep = inputs["completion_mask"].clone()
        keep[:, :3] = 0
        by_hand = ((kl * keep).sum(-1) / keep.sum(-1).clamp(min=1)).mean()
        pairs.append((loss.detach(), by_hand.detach()))
        return loss

    monkeypatch.setattr(theirs.SDFTTrainer, "_compute_self_distillation_loss", spying)
    train(settings(checkpoint, dataset, tmp_path / "m.bmt", heldout=0, validation=0), quiet())
    assert len(pairs) == 2 * STEPS
    assert any(loss > 0 for loss, _ in pairs)
    for loss, by_hand in pairs:
        torch.testing.assert_close(loss, by_hand, rtol=1e-3, atol=1e-5)


def test_what_a_run_tells_and_leaves(checkpoint, dataset, tmp_path):
    config = settings(checkpoint, dataset, tmp_path / "m.bmt", steps=10, warmup=0.2)
    mask = train(config, quiet())
    assert bmt_core.load(config.output) == mask
    assert {p.name for p in tmp_path.iterdir()} == {"m.bmt", "m.bmt.history.json"}
    assert {"base", "teacher", "init", "mask"} <= set(mask.metadata["scores"])
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [v["step"] for v in history["validation"]] == [2, 4, 6, 8, 10]
    assert all(s["closed_gates"] > 0 for s in history["steps"])
    # A linear rise over two steps, then half a cosine.
    rates = [s["learning_rate"] for s in history["steps"]]
    cosine = [0.01 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx([0, 0.01, *cosine], rel=1e-6)


def test_a_resumed_run_is_bit_identical(checkpoint, dataset, tmp_path, monkeypatch):
    config = settings(checkpoint, dataset, tmp_path / "whole.bmt", select="last")
    whole = train(config, quiet())
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    [folder] = (tmp_path / "cut.bmt.run").glob("checkpoint-*")
    with safe_open(folder / "model.safetensors", "pt") as kept:
        kinds = sorted(key.rpartition(".")[2] for key in kept.keys())  # noqa: SIM118
    assert kinds == ["gate_logits"] * 2 + ["teacher_logits"] * 2
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert resumed == whole
    histories = [
        json.loads((tmp_path / f"{name}.bmt.history.json").read_text()) for name in ("whole", "cut")
    ]
    losses = [[s["loss"] for s in h["steps"]] for h in histories]
    assert losses[0] == losses[1]
    still = dataclasses.replace(config, output=tmp_path / "still.bmt", learning_rate=1e-12)
    assert train(still, quiet()) != whole


@pytest.mark.found
@pytest.mark.parametrize(("skip", "refused"), [(3, True), (2, False)])
def test_answers_within_skip_tokens_teach_nothing_and_are_an_error(
    checkpoint, dataset, tmp_path, monkeypatch, skip, refused
):
    def short(self, prompt_ids, *_, **__):
        return [[65, 66, self.eos_token_ids[0]] for _ in prompt_ids]

    monkeypatch.setattr(bmt_trainer.methods.trl_mixins.HardSampling, "sampled", short)
    changes = {"heldout": 0, "validation": 0, "steps": 2, "skip_tokens": skip}
    config = settings(checkpoint, dataset, tmp_path / "m.bmt", **changes)
    if not refused:
        train(config, quiet())
        return
    with pytest.raises(DataError, match=r"skip_tokens: 3 .*100% of the answers.*set skip_tokens"):
        train(config, quiet())
    assert not config.output.exists()


def test_the_teachers_turn():
    example = Example(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + {x}?"}), "2"
    )
    system, turn = teacher_example(example, "{prompt}|{demonstration}").prompt
    assert system["content"] == "Be brief."
    assert turn == {"role": "user", "content": "1 + {x}?|2"}
    teacher = teacher_example(dataclasses.replace(example, demonstration="See: 2"), TEACHER_PROMPT)
    assert "See: 2" in teacher.prompt[-1]["content"]
    assert teacher.answer == "2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch": 3}, "does not divide"),
        ({"teacher_prompt": "{prompt}"}, "must occur"),
        ({"teacher_prompt": "{prompt} {demonstration} {more}"}, "braces"),
        ({"teacher_rate": 0}, "teacher_rate"),
        ({"grader": "nothing"}, "nothing"),
    ],
)
def test_bad_settings(checkpoint, dataset, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(settings(checkpoint, dataset, tmp_path / "m.bmt", **changes), quiet())


def test_prompts_that_are_too_long_with_their_demonstration(checkpoint, dataset, tmp_path):
    with pytest.raises(DataError, match="demonstrations"):
        train(settings(checkpoint, dataset, tmp_path / "m.bmt", max_length=60), quiet())
