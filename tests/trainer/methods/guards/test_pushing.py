"""`push` of a run: checked before it starts, done when the mask is written."""

from __future__ import annotations

import shlex

import bmt_core
import pytest
from bmt_trainer.errors import ConfigError, OutputError
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.guards import pushing
from bmt_trainer.methods.sft import train

from tests.support.http.hub import Refused, running_hub, use
from tests.support.masks import make_mask
from tests.support.training.display import Lines


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with running_hub() as made:
        use(made, monkeypatch, tmp_path_factory.mktemp("hub"))
        yield made


def settings(checkpoint, output, **changes):
    return SftConfig(
        model=str(checkpoint),
        dataset="task:initials",
        output=output,
        heldout=4,
        steps=1,
        calibration_prompts=4,
        max_new_tokens=2,
        checkpoint_every=0,
        device="cpu",
        push="hf://acme/initials@v1",
        **changes,
    )


def test_a_run_pushes_its_mask_with_its_scores(hub, checkpoint, tmp_path):
    display = Lines()
    mask = train(settings(checkpoint, tmp_path / "m.bmt"), display)
    files = hub.repositories["acme/initials"].files("v1")
    assert bmt_core.decode(files["m.bmt"]) == mask
    card = files["README.md"].decode()
    assert "task&#58;initials" in card
    assert "**this mask**" in card
    assert "hf://acme/initials@v1/m.bmt" in display.text
    # The place is no part of the recipe.
    assert "push" not in mask.metadata["config"]


def test_a_push_that_cannot_succeed_ends_the_run_before_it_starts(
    hub, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="push: there is no token"):
        train(settings(checkpoint, tmp_path / "m.bmt"), Lines())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"push: .*place of the Hub"):
        SftConfig(model="m", dataset="task:initials", output=tmp_path / "m.bmt", push="acme/math")


def test_a_push_that_fails_leaves_the_mask_and_names_the_command(hub, tmp_path):
    def act(method, path):
        raise Refused(503, "", "maintenance")

    hub.fail = act
    output = tmp_path / "my mask.bmt"
    bmt_core.save(make_mask(0), output)
    with pytest.raises(OutputError, match=r"written, but not pushed: .*503") as error:
        pushing.push(output, "hf://acme/math", print)
    command = str(error.value).rpartition("push it with: ")[2]
    assert shlex.split(command) == ["bmt-client", "push", str(output), "hf://acme/math"]
    assert output.exists()
