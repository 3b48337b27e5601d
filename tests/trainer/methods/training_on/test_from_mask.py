"""Training on from a mask: it begins as that mask, free or held, and resumes as any run."""

from __future__ import annotations

from pathlib import Path

import bmt_core
import numpy as np
import pytest
from bmt_core import Base, BaseMismatch, Mask, TensorMask
from bmt_trainer.errors import ConfigError, EmptyMask
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.preferences import dpo, kto
from safetensors.torch import load_file, save_file

from tests.support.masks import random_mask
from tests.support.tiny_model import interrupt_after, save_tiny_llama
from tests.support.training.display import Lines, quiet

PAIRS = {"dataset": "task:word-order?least=2&most=3"}
METHODS = {
    "dpo": (dpo.train, DpoConfig, {"batch_size": 2, **PAIRS}),
    "kto": (kto.train, KtoConfig, {"batch_size": 4, **PAIRS}),
    "sft": (sft.train, SftConfig, {"batch_size": 4}),
    "grpo": (grpo.train, GrpoConfig, {"prompts_per_step": 2, "completions": 2, "micro_batch": 4}),
    "sdft": (sdft.train, SdftConfig, {"prompts_per_step": 2, "micro_batch": 2, "skip_tokens": 0}),
}


def train(method, checkpoint, output, display=None, **changes):
    run, kind, own = METHODS[method]
    common = {
        "model": str(checkpoint),
        "dataset": "task:initials",
        "output": output,
        "heldout": 2,
        "steps": 3,
        "train_examples": 16,
        "learning_rate": 0.02,
        "calibration_prompts": 4,
        "max_new_tokens": 2,
        "checkpoint_every": 1,
        "device": "cpu",
    }
    return run(kind(**{**common, **own, **changes}), display or quiet())


@pytest.fixture(scope="module")
def first(checkpoint, tmp_path_factory):
    """A mask of the checkpoint with 2 % zeros, as a file."""
    base = Base("tiny", bmt_core.fingerprint(checkpoint))
    mask = random_mask(bmt_core.geometry(checkpoint), sparsity=0.02, base=base)
    path = tmp_path_factory.mktemp("first") / "first.bmt"
    bmt_core.save(mask, path)
    return path


@pytest.mark.parametrize(
    ("method", "hold"),
    [("sft", False), ("sft", True), ("grpo", False), ("sdft", True), ("dpo", False), ("kto", True)],
)
def test_without_steps_the_mask_is_the_same(checkpoint, tmp_path, first, method, hold):
    display = Lines()
    mask = train(
        method, checkpoint, tmp_path / "m.bmt", display, steps=0, from_mask=first, hold_zeros=hold
    )
    given = bmt_core.load(first)
    assert mask.digest == given.digest == bmt_core.load(tmp_path / "m.bmt").digest
    assert mask.metadata["from"] == {"digest": given.digest, "zeros": given.zeros, "held": hold}
    assert mask.metadata["scores"]["init"] == mask.metadata["scores"]["mask"]
    assert str(first) not in str(mask.metadata)
    assert f"{given.zeros:,} zeros, {'held' if hold else 'free'}" in display.text
    assert not (tmp_path / "m.bmt.run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_held_zeros_stay_and_new_ones_come(checkpoint, tmp_path, first, method):
    given = bmt_core.load(first)
    options = {"from_mask": first, "hold_zeros": True, "alpha_start": 5.0, "alpha_end": 10.0}
    mask = train(method, checkpoint, tmp_path / "m.bmt", learning_rate=0.2, **options)
    assert bmt_core.difference(given, mask).zeros == 0
    if method == "sft":  # rewards of a random model may all be equal
        assert mask.zeros > given.zeros


def test_free_zeros_may_come_back(checkpoint, tmp_path, first):
    given = bmt_core.load(first)
    mask = train("sft", checkpoint, tmp_path / "m.bmt", learning_rate=0.2, from_mask=first)
    assert bmt_core.difference(given, mask).zeros > 0


def test_killed_and_resumed_it_ends_as_one_that_was_not(checkpoint, tmp_path, first, monkeypatch):
    options = {"from_mask": first, "hold_zeros": True, "steps": 4}
    whole = train("sft", checkpoint, tmp_path / "whole.bmt", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train("sft", checkpoint, tmp_path / "m.bmt", **options)
    # The file may have moved meanwhile; another mask may not take its place.
    moved = tmp_path / "moved.bmt"
    moved.write_bytes(first.read_bytes())
    other = tmp_path / "other.bmt"
    bmt_core.save(Mask(whole.base, whole.tensors), other)
    with pytest.raises(Exception, match="from_mask"):
        train("sft", checkpoint, tmp_path / "m.bmt", **{**options, "from_mask": other}, resume=True)
    options["from_mask"] = moved
    display = Lines()
    resumed = train("sft", checkpoint, tmp_path / "m.bmt", display, **options, resume=True)
    assert "resuming at step" in display.text
    assert resumed.digest == whole.digest


def test_a_mask_of_another_base_is_refused_before_data_is_read(tmp_path, first):
    other = save_tiny_llama(tmp_path / "other", seed=3)
    with pytest.raises(BaseMismatch, match="fingerprint"):
        train("sft", other, tmp_path / "m.bmt", from_mask=first, dataset="no/such-data")
    assert not (tmp_path / "m.bmt.run").exists()


def test_zeros_outside_of_the_targets_are_refused(checkpoint, tmp_path, first):
    with pytest.raises(ConfigError, match=r"from_mask: .*deletes weights of .*targets"):
        train(
            "sft", checkpoint, tmp_path / "m.bmt", from_mask=first, targets=r"\.0\.mlp\.gate_proj$"
        )


def test_zeros_that_are_0_in_the_base_are_kept(checkpoint, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    name = sorted(bmt_core.geometry(folder))[0]
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[:3] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = Base("tiny", bmt_core.fingerprint(folder))
    tensors = [
        TensorMask(n, shape, np.arange(6 if n == name else 2, dtype=np.uint32))
        for n, shape in bmt_core.geometry(folder).items()
    ]
    given = Mask(base, tuple(tensors))
    bmt_core.save(given, tmp_path / "first.bmt")
    options = {"from_mask": tmp_path / "first.bmt", "hold_zeros": True}
    assert train("sft", folder, tmp_path / "a.bmt", steps=0, **options) == given
    mask = train("sft", folder, tmp_path / "b.bmt", **options)
    assert bmt_core.difference(given, mask).zeros == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"hold_zeros": True}, "hold_zeros"),
        ({"from_mask": "m.bmt", "lean": "on"}, "lean: on"),
    ],
)
def test_settings_that_exclude_each_other(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        SftConfig(model="m", dataset="task:initials", output=tmp_path / "o.bmt", **changes)


def test_a_file_that_is_not_there(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"from_mask: .*no\.bmt cannot be read"):
        train("sft", checkpoint, tmp_path / "m.bmt", from_mask=tmp_path / "no.bmt")
    with pytest.raises(ConfigError, match=r"from_mask: .*bmt-client pull"):
        train("sft", checkpoint, tmp_path / "m.bmt", from_mask=Path("hf://acme/math"))


@pytest.mark.parametrize("data", [b"", b"x", b"BMT1" * 20])
def test_a_file_that_is_no_mask(checkpoint, tmp_path, data):
    (tmp_path / "no.bmt").write_bytes(data)
    with pytest.raises(ConfigError, match=r"from_mask: .*no\.bmt is no mask: "):
        train("sft", checkpoint, tmp_path / "m.bmt", from_mask=tmp_path / "no.bmt")


@pytest.mark.found
def test_a_mask_without_zeros_and_without_steps_advises_what_has_a_part(checkpoint, tmp_path):
    base = Base("tiny", bmt_core.fingerprint(checkpoint))
    path = tmp_path / "empty.bmt"
    bmt_core.save(random_mask(bmt_core.geometry(checkpoint), sparsity=0.0, base=base), path)
    with pytest.raises(ConfigError, match=r"deletes no weight.*set steps, or name another mask"):
        train("sft", checkpoint, tmp_path / "m.bmt", from_mask=path, steps=0)
    # With steps too few to learn anything, eta has no part either.
    with pytest.raises(EmptyMask, match=r"nothing is written\. Raise learning_rate or steps$"):
        train("sft", checkpoint, tmp_path / "m.bmt", from_mask=path, steps=1, learning_rate=1e-9)
