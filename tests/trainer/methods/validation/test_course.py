"""Runs with epochs, schedules of the rate, losses of rows set aside, and early stops."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import pytest
import yaml
from bmt_trainer.cli.train import settings_command
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.masking.apply import apply
from bmt_trainer.methods import grpo, schedules, sdft, sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.preferences import dpo, kto
from bmt_trainer.methods.run_folder import settings_of
from bmt_trainer.methods.validation import losses
from bmt_trainer.methods.validation.callback import Measure
from bmt_trainer.models import load_model
from bmt_trainer.settings import read_yaml

from tests.support.tiny_model import byte_tokenizer, interrupt_after
from tests.support.training.display import Lines, quiet

METHODS = {
    "sft": (sft.train, SftConfig, {"batch_size": 2}),
    "dpo": (dpo.train, DpoConfig, {"batch_size": 2}),
    "kto": (kto.train, KtoConfig, {"batch_size": 4}),
    "grpo": (grpo.train, GrpoConfig, {"prompts_per_step": 2, "completions": 2, "micro_batch": 4}),
    "sdft": (sdft.train, SdftConfig, {"prompts_per_step": 2, "micro_batch": 2, "skip_tokens": 0}),
}


def settings(method, checkpoint, output, **changes):
    _, kind, own = METHODS[method]
    common = {
        "model": str(checkpoint),
        "dataset": "task:word-order?least=2&most=3",
        "output": output,
        "heldout": 2,
        "train_examples": 10,
        "learning_rate": 0.02,
        "calibration_prompts": 4,
        "max_new_tokens": 2,
        "checkpoint_every": 1,
        "device": "cpu",
    }
    return kind(**{**common, **own, **changes})


def train(method, checkpoint, output, display=None, **changes):
    config = settings(method, checkpoint, output, **changes)
    return METHODS[method][0](config, display or quiet())


def history(output):
    return json.loads(output.with_name(f"{output.name}.history.json").read_text())


@pytest.mark.parametrize(
    ("method", "changes", "steps"),
    [
        # Ten rows in steps of four: three steps an epoch, the last of two rows.
        ("sft", {"epochs": 1.5, "gradient_accumulation": 2}, 5),
        ("dpo", {"epochs": 0.5}, 3),
        ("kto", {"epochs": 1}, 5),  # a pair is two answers
        # Eleven prompts, one of which fills no step.
        ("grpo", {"epochs": 1.2, "train_examples": 11, "validation": 0}, 6),
        ("sdft", {"epochs": 1, "validation": 0}, 5),
    ],
)
def test_epochs_are_passes_over_the_training_examples(checkpoint, tmp_path, method, changes, steps):
    output, display = tmp_path / "m.bmt", Lines()
    mask = train(method, checkpoint, output, display, **changes)
    assert f"{steps} steps: {changes['epochs']:g} epochs of" in display.text
    assert mask.metadata["steps"] == len(history(output)["steps"]) == steps
    assert mask.metadata["config"]["epochs"] == changes["epochs"]
    assert "steps" not in mask.metadata["config"]


def test_an_epoch_of_files_is_all_that_they_hold(checkpoint, tmp_path):
    path = tmp_path / "x.jsonl"
    made = [{"prompt": f"q{n}", "completion": "a"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    options = {"dataset": str(path), "train_examples": None, "epochs": 2, "validation": 2}
    mask = train("sft", checkpoint, tmp_path / "m.bmt", **options)
    # Two are held out, two for validation.
    assert (mask.metadata["train_examples"], mask.metadata["steps"]) == (8, 8)


def test_settings_of_the_course_that_exclude_each_other(checkpoint, tmp_path):
    for method, changes, words in (
        ("sft", {"epochs": 2, "steps": 30}, "epochs: 2 takes the place of steps, and steps is 30"),
        ("sft", {"epochs": 0}, "epochs: 0.0 must be above 0"),
        ("dpo", {"warmup": 3}, "warmup: 3, and the schedule constant has none"),
        ("sdft", {"lr_scheduler_type": "constant"}, "warmup: 0.1, and the schedule constant"),
        ("kto", {"lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs: constant takes none"),
        ("sft", {"lr_scheduler_type": "reduce_lr_on_plateau"}, "is not one of constant"),
        ("sft", {"patience": 2}, "patience: 2 counts validations, and validation is 0"),
        ("grpo", {"patience": 2, "validation": 0}, "patience: 2 counts validations"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings(method, checkpoint, tmp_path / "m.bmt", **changes)
    for changes, error, words in (
        ({"epochs": 1, "train_examples": None}, ConfigError, "epochs: task.* has no end"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ConfigError, "cosine_with_min_lr of"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"x": 1}}, ConfigError, "linear"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}},
            ConfigError,
            "polynomial",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"last_epoch": 3}},
            ConfigError,
            "does not take them",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1}},
            ConfigError,
            "where rates are from 0 to learning_rate 0.02",
        ),
        ({"validation": 400, "train_examples": 1}, DataError, "validation"),
    ):
        if error is DataError:
            changes = {**changes, "dataset": one_prompt(tmp_path)}
        with pytest.raises(error, match=words):
            train("sft", checkpoint, tmp_path / "m.bmt", **changes)
        assert not (tmp_path / "m.bmt.run").exists()


def one_prompt(folder):
    """Rows of which all but two have one prompt."""
    path = folder / "one.jsonl"
    made = [{"prompt": "q", "completion": f"{n}"} for n in range(6)]
    made += [{"prompt": f"p{n}", "completion": "a"} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def test_the_rates_of_a_long_run_are_looked_at_in_no_time(tmp_path):
    """A run of a million steps began after 45 seconds."""
    config = settings("sft", "m", tmp_path / "m.bmt", steps=10**8, lr_scheduler_type="cosine")
    began = time.monotonic()
    schedules._check(config)
    assert time.monotonic() - began < 5


def test_flags_override_the_other_of_steps_and_epochs_in_a_file(tmp_path):
    path, seen = tmp_path / "c.yaml", []
    common = {"model": "m", "dataset": "d", "output": "o.bmt"}
    command = settings_command(SftConfig, seen.append)
    path.write_text(yaml.safe_dump({**common, "steps": 30}))
    command(config=path, epochs=2.0)
    path.write_text(yaml.safe_dump({**common, "epochs": 2}))
    command(config=path, steps=30)
    assert [(c.epochs, c.steps) for c in seen] == [(2.0, 400), (None, 30)]
    with pytest.raises(ConfigError, match="epochs: 2 takes the place of steps"):
        command(config=path, steps=30, epochs=2.0)
    with pytest.raises(ConfigError, match="epochs: 2 takes the place of steps, and steps is 400"):
        command(config=path, steps=400, epochs=2.0)
    assert read_yaml(path)["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, lambda t: 1.0),
        ({"lr_scheduler_type": "linear", "warmup": 2}, lambda t: t / 2 if t < 2 else (8 - t) / 6),
        (
            {"lr_scheduler_type": "cosine", "warmup": 0.25},
            lambda t: t / 2 if t < 2 else 0.5 * (1 + math.cos(math.pi * (t - 2) / 6)),
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup": 100},
            lambda t: t / 7,  # the last step is left
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.5},
            },
            lambda t: 0.5 + 0.25 * (1 + math.cos(math.pi * t / 8)),
        ),
    ],
)
def test_rates_follow_the_schedule(checkpoint, tmp_path, changes, rate):
    """The paper's is constant, the default."""
    output = tmp_path / "m.bmt"
    mask = train("sft", checkpoint, output, steps=8, heldout=0, checkpoint_every=0, **changes)
    rates = [entry["learning_rate"] / 0.02 for entry in history(output)["steps"]]
    assert rates == pytest.approx([rate(t) for t in range(8)], abs=1e-9)
    for name, value in changes.items():
        assert mask.metadata["config"][name] == value


COURSE = {
    **{"steps": 6, "validation": 4, "validate_every": 1, "lr_scheduler_type": "linear"},
    **{"warmup": 2, "patience": 5, "learning_rate": 0.05},
}


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_killed_and_resumed_it_ends_as_one_that_was_not(checkpoint, tmp_path, monkeypatch, method):
    whole = train(method, checkpoint, tmp_path / "whole.bmt", **COURSE)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(method, checkpoint, tmp_path / "m.bmt", **COURSE)
    resumed = train(method, checkpoint, tmp_path / "m.bmt", **COURSE, resume=True)
    assert (tmp_path / "m.bmt").read_bytes() == (tmp_path / "whole.bmt").read_bytes()
    assert dict(resumed.metadata) == dict(whole.metadata)
    made, again = (history(tmp_path / name) for name in ("whole.bmt", "m.bmt"))
    assert again["validation"] == made["validation"]
    for key in ("loss", "learning_rate"):
        assert [e[key] for e in again["steps"]] == [e[key] for e in made["steps"]]
    found = made["validation"]
    assert [v["step"] for v in found] == list(range(1, len(found) + 1))
    best = min(found, key=lambda v: (v["loss"], -v["step"]))
    assert whole.metadata["step"] == best["step"]
    assert {v["total"] for v in found} == ({8} if method == "kto" else {4})


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_killed_after_its_early_stop_ends_as_one_that_was_not(
    checkpoint, tmp_path, monkeypatch, every
):
    """At the checkpoint of the stop, and at one before it."""
    # Steps that are far too long: the loss is least at the first validation.
    options = {**COURSE, "learning_rate": 30.0, "patience": 2, "lr_scheduler_type": "constant"}
    options |= {"warmup": 0, "checkpoint_every": every}
    display = Lines()
    whole = train("sft", checkpoint, tmp_path / "whole.bmt", display, **options)
    stop = whole.metadata["stopped_at"]
    assert stop < 6
    losses_of = [v["loss"] for v in history(tmp_path / "whole.bmt")["validation"]]
    assert losses_of.index(min(losses_of)) == stop - 3
    assert f"stopped at step {stop} of 6" in display.text
    assert len(history(tmp_path / "whole.bmt")["steps"]) == stop

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sft, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train("sft", checkpoint, tmp_path / "m.bmt", **options)
    train("sft", checkpoint, tmp_path / "m.bmt", **options, resume=True)
    assert (tmp_path / "m.bmt").read_bytes() == (tmp_path / "whole.bmt").read_bytes()
    assert (
        history(tmp_path / "m.bmt")["validation"] == history(tmp_path / "whole.bmt")["validation"]
    )
    assert len(history(tmp_path / "m.bmt")["steps"]) == stop


def test_the_written_mask_has_the_least_validation_loss(checkpoint, tmp_path):
    """By a checkpoint with the mask in it, on the rows that were set aside."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        of = losses.of_completions

        def spying(model, rows, padding):
            seen.append(rows)
            return of(model, rows, padding)

        patch.setattr(losses, "of_completions", spying)
        mask = train("sft", checkpoint, tmp_path / "m.bmt", **COURSE)
    model = load_model(checkpoint)
    apply(mask, model)
    loss = losses.of_completions(model, seen[0], 0)
    found = history(tmp_path / "m.bmt")["validation"]
    assert loss.loss == pytest.approx(min(v["loss"] for v in found), rel=1e-3)
    last = train("sft", checkpoint, tmp_path / "last.bmt", **COURSE, select="last")
    assert "step" not in last.metadata
    # No row of the validation is trained on.
    tokenizer = byte_tokenizer()
    assert len({tokenizer.decode(row["input_ids"]) for row in seen[0]}) == 4
    assert mask.metadata["train_examples"] == 10


@pytest.mark.found
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_last_mask_is_scored_too_if_another_is_chosen(checkpoint, tmp_path, method):
    """Without the other, selection's part in a score is not seen."""
    changes = {"steps": 3, "validation": 2, "validate_every": 1, "heldout": 3}
    with pytest.MonkeyPatch.context() as patch:
        # The first validation is the best; rewards of a random model are all alike.
        patch.setattr(Measure, "of", lambda self, score: -float(score.get("step", 99)))
        display = Lines()
        mask = train(method, checkpoint, tmp_path / "best.bmt", display, select="best", **changes)
    last = train(method, checkpoint, tmp_path / "last.bmt", select="last", **changes)
    assert mask.metadata["step"] == 1
    assert mask.metadata["scores"]["last"] == last.metadata["scores"]["mask"]
    assert "last " in display.text
    assert "last" not in last.metadata["scores"]


def test_a_run_of_an_earlier_build_may_be_resumed(tmp_path):
    """Settings that it had not are left out while they have their defaults."""
    common = {"model": "m", "dataset": "d", "output": tmp_path / "m.bmt"}
    for kind in (SftConfig, DpoConfig):
        found = settings_of(kind(**common))
        assert not {"epochs", "warmup", "validation", "select", "patience"} & found.keys()
        assert "steps" in found
    for on_policy in (GrpoConfig, SdftConfig):
        found = settings_of(on_policy(**common))
        assert not {"epochs", "patience", "rollouts", "rollout_batch"} & found.keys()
    assert settings_of(SdftConfig(**common))["warmup"] == 0.1
    assert settings_of(GrpoConfig(**common))["validation"] == 100
    changed = dataclasses.replace(SftConfig(**common), validation=5, patience=2)
    assert settings_of(changed)["patience"] == 2


@pytest.mark.parametrize("method", ["sft", "grpo", "sdft"])
def test_other_answers_of_prompts_for_validation_are_not_trained_on(checkpoint, tmp_path, method):
    path = tmp_path / "x.jsonl"
    made = [{"prompt": f"p{n % 4}", "completion": f"{n}"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    display = Lines()
    options = {"dataset": str(path), "heldout": 0, "train_examples": 12, "steps": 1}
    mask = train(method, checkpoint, tmp_path / "m.bmt", display, **options, validation=2)
    # Two of the other answers to each of the two prompts.
    assert "left out 4 training examples: other answers" in display.text
    assert mask.metadata["train_examples"] == 6


@pytest.mark.parametrize(
    ("method", "rows", "changes", "words"),
    [
        # Its own divergence would be the point that its loss is measured from: 0.5 always.
        (
            "kto",
            [{"prompt": f"p{n}", "completion": "a", "label": True} for n in range(9)],
            {},
            "one answer is set aside",
        ),
        # Nothing would be validated, and patience would never end the run.
        (
            "sft",
            # The one row that can be trained on is not the first by the seed.
            [{"prompt": f"{n}" * (200 if n else 1), "completion": "a"} for n in range(9)],
            {"max_length": 80, "overlong": "truncate-right"},
            "nothing is left to learn",
        ),
    ],
)
def test_a_validation_without_a_loss_is_refused(checkpoint, tmp_path, method, rows, changes, words):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset": str(path), "heldout": 0, "steps": 2, "validation": 1, "patience": 1}
    with pytest.raises(DataError, match=f"validation: .*{words}"):
        train(method, checkpoint, tmp_path / "m.bmt", **{**common, **changes})
