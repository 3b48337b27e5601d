"""Selection of targets over architectures, on models without weights: whole, partly, or refused."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.errors import ExpertTensors, NoTargets
from bmt_trainer.masking.targets import coverage, select
from transformers import AutoModelForCausalLM

from tests.support.training.architectures import DENSE, EXPERTS, PARTLY_DENSE, small_config


def outline(kind, **changes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(small_config(kind, **changes))


@pytest.mark.parametrize("kind", DENSE)
def test_dense_models_are_masked_in_every_layer(kind):
    model = outline(kind)
    chosen = select(model)
    assert coverage(model, chosen) == (4, 4)
    assert all(name.endswith(".mlp.gate_proj") for name in chosen)


@pytest.mark.found
@pytest.mark.parametrize("kind", ["phi3", "glm4"])
def test_fused_gates_are_masked_in_every_layer_by_their_rows(kind):
    model = outline(kind)
    chosen = select(model)
    assert coverage(model, chosen) == (4, 4)
    assert {target.shape for target in chosen.values()} == {(48, 32)}


@pytest.mark.found
@pytest.mark.parametrize(("kind", "changes", "covered"), PARTLY_DENSE)
def test_a_model_whose_experts_begin_later_is_masked_in_part_only_if_asked(kind, changes, covered):
    model = outline(kind, **changes)
    with pytest.raises(ExpertTensors, match=f"in {covered} of 4 layers"):
        select(model)
    # The same pattern is taken if it is given.
    assert coverage(model, select(model, r"\.mlp\.gate_proj$")) == (covered, 4)


@pytest.mark.found
@pytest.mark.parametrize(
    ("kind", "changes", "error"),
    [
        ("mixtral", EXPERTS, ExpertTensors),
        ("qwen2_moe", EXPERTS, ExpertTensors),
        ("qwen3_moe", EXPERTS, ExpertTensors),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 4}, NoTargets),
        ("starcoder2", {}, NoTargets),
        ("gpt_neox", {}, NoTargets),
        ("phi", {}, NoTargets),
    ],
)
def test_models_without_gates_of_their_own(kind, changes, error):
    with pytest.raises(error):
        select(outline(kind, **changes))


def test_a_part_without_experts_is_refused_too():
    model = outline("llama")
    del model.model.layers[2].mlp.gate_proj
    with pytest.raises(NoTargets, match="in 3 of 4 layers"):
        select(model)
    assert len(select(model, "gate_proj")) == 3
