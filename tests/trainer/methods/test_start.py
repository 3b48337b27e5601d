"""Settings of the start: a run says which of them are not the paper's, and starts by them."""

from __future__ import annotations

import pytest
from bmt_trainer.errors import EmptyMask
from bmt_trainer.methods import sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.run_folder import settings_of
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import save_tiny_llama
from tests.support.training.display import Lines

KINDS = (SftConfig, GrpoConfig, SdftConfig, DpoConfig, KtoConfig)


def run(checkpoint, output, **changes):
    """The lines of a run that starts, and the zeros that it starts with, by G."""
    display = Lines()
    config = SftConfig(
        **{
            **{"model": str(checkpoint), "dataset": "task:initials", "output": output},
            **{"heldout": 2, "steps": 1, "batch_size": 2, "max_new_tokens": 2, "device": "cpu"},
            # No gate moves: the mask that is written is the start.
            **{"calibration_prompts": 4, "checkpoint_every": 0, "learning_rate": 1e-12},
            **changes,
        }
    )
    mask = sft.train(config, display)
    return [line for line in display.text.splitlines() if line.startswith("start:")], mask


def test_a_start_that_is_not_the_papers_is_named_with_the_papers_values(checkpoint, tmp_path):
    lines, paper = run(checkpoint, tmp_path / "a.bmt")
    assert lines == []
    lines, other = run(*(checkpoint, tmp_path / "b.bmt"), eta=0, init_std=0.02, eta_among="nonzero")
    assert lines == [
        "start: eta_among nonzero (the paper: all), init_std 0.02 (the paper: 0.01), "
        "eta 0 (the paper: 1/2048)"
    ]
    # The tail alone: of N(0.03, 0.02²) 6.7 % are below 0, of the paper's 0.13 %.
    assert other.zeros > 10 * paper.zeros


@pytest.mark.found
@pytest.mark.parametrize(("eta", "shown"), [(0.1, "0.1"), (0.001, "1/1000"), (0, "0")])
def test_another_share_is_another_start(eta, shown):
    config = SftConfig(model="m", dataset="d", output="m.bmt", eta=eta)
    assert config.other_start == f"eta {shown} (the paper: 1/2048)"


@pytest.mark.found
def test_a_run_on_a_base_with_zeros_deletes_other_weights_if_they_are_to_be_picked(tmp_path):
    base = save_tiny_llama(tmp_path / "base")
    file = base / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if "gate_proj" in name:
            weight.view(-1)[::2] = 0
    save_file(weights, file, metadata={"format": "pt"})
    picks = {"eta": 0.1, "init_std": 0.0}
    with pytest.raises(EmptyMask):
        run(base, tmp_path / "all.bmt", **picks)
    _, mask = run(base, tmp_path / "nonzero.bmt", **picks, eta_among="nonzero")
    gates = [weight for name, weight in weights.items() if "gate_proj" in name]
    assert mask.zeros == sum(int(0.1 * (weight != 0).sum()) for weight in gates)
    # Half of the picks are zeros already, which the start does not delete.
    _, mask = run(base, tmp_path / "tail.bmt", eta=0.5)
    assert mask.metadata["init_sparsity"] == mask.sparsity < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_builds_without_a_setting_of_the_start_can_be_resumed(kind, tmp_path):
    common = {"model": "m", "dataset": "d", "output": tmp_path / "m.bmt"}
    if "reward" in kind.__dataclass_fields__:
        common["reward"] = "words"
    assert "eta_among" not in settings_of(kind(**common))
    assert settings_of(kind(**common, eta_among="nonzero"))["eta_among"] == "nonzero"
