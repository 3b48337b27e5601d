"""Selection of layers to mask, and models that cannot be masked."""

import pytest
import torch
from bmt_core import Base
from bmt_trainer.errors import (
    ConfigError,
    ExpertTensors,
    FusedGate,
    ModelError,
    NoTargets,
    QuantizedModel,
)
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.export import export
from bmt_trainer.masking.masked_linear import MaskedLinear, ParameterAccess
from bmt_trainer.masking.targets import select
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.tiny_model import tiny_llama
from tests.support.training.architectures import EXPERTS, small_config


def test_attach_masks_the_gate_projections_and_freezes_the_rest():
    model = tiny_llama()
    attached = attach(model)
    assert list(attached.layers) == [f"model.layers.{i}.mlp.gate_proj" for i in range(2)]
    assert all(isinstance(m, MaskedLinear) for m in attached.layers.values())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.gate_logits" for name in attached.layers}
    assert len({id(m.state) for m in attached.layers.values()}) == 1
    assert attached.numel == 2 * 64 * 32
    assert attached.closed == 0


def test_sparsity_counts_gates_at_zero():
    attached = attach(tiny_llama())
    first, second = attached.gates()
    with torch.no_grad():
        first.view(-1)[:3] = torch.tensor([0.0, -0.0, -1.0])
        second.view(-1)[0] = -1e-9
    assert attached.closed == 4
    assert attached.sparsity == 4 / 4096


def test_sharded_gates_are_read_and_written_by_the_access_alone():
    """A stand-in for sharding: the parameters hold a quarter of what the access returns."""
    read, written = [], []

    def full_tensor(tensor):
        read.append(tensor)
        return tensor.repeat(4, 1)

    access = ParameterAccess(full_tensor, lambda gates, values: written.append((gates, values)))
    attached = attach(tiny_llama(), access=access)
    gates = attached.gates()
    with torch.no_grad():
        gates[0].view(-1)[0] = 0.0
    assert attached.closed == 4
    first = next(iter(attached.layers.values()))
    assert first.zero_positions().tolist() == [i * gates[0].numel() for i in range(4)]
    with torch.no_grad():
        gates[0].fill_(1.0)
    read.clear()
    attached.load_mask(export(attached, Base("tiny", "0" * 64)))
    assert [id(g) for g, _ in written] == [id(g) for g in gates]
    assert all(values.eq(1).all() for _, values in written)
    weights = [layer.weight for layer in attached.layers.values()]
    assert {id(t) for t in read} == {id(t) for t in [*gates, *weights]}


class Block(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        self.mlp = nn.Module()
        for name, part in parts.items():
            setattr(self.mlp, name, part)


class Int8Linear(nn.Linear):
    """A stand-in for the layers of quantization libraries."""


def three_d():
    return nn.Parameter(torch.zeros(4, 8, 8))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (Block(gate_up_proj=nn.Linear(4, 8)), FusedGate, "gate_up_proj"),
        (Block(gate_up_proj=three_d()), ExpertTensors, "gate_up_proj"),
        (Block(gate_proj=Int8Linear(4, 4)), QuantizedModel, "Int8Linear"),
        (Block(gate_proj=nn.Linear(4, 4, device="meta")), QuantizedModel, "meta"),
        (Block(fc1=nn.Linear(4, 4)), NoTargets, "fc1"),
        (nn.Identity(), NoTargets, "none"),
    ],
)
def test_models_that_cannot_be_masked(model, error, says):
    model = nn.Sequential(model)
    with pytest.raises(error, match=says) as raised:
        attach(model)
    assert isinstance(raised.value, ModelError)


def test_a_quantized_model_is_refused():
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(QuantizedModel):
        attach(model)


def test_a_refused_model_is_unchanged():
    model = nn.Sequential(Block(gate_proj=nn.Linear(4, 4)), Block(gate_proj=Int8Linear(4, 4)))
    with pytest.raises(QuantizedModel):
        attach(model)
    assert type(model[0].mlp.gate_proj) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


def test_attaching_twice_and_a_bad_pattern_are_errors():
    model = tiny_llama()
    with pytest.raises(ConfigError, match="regular expression"):
        attach(model, "(")
    attach(model)
    with pytest.raises(ConfigError, match="masked already"):
        attach(model)


@pytest.mark.found
@pytest.mark.parametrize("targets", ["", "mlp"])
def test_targets_that_match_more_than_linear_layers_are_named(targets):
    with pytest.raises(NoTargets, match=f"targets: '{targets}' matches .* of several layers"):
        attach(tiny_llama(), targets)


@pytest.mark.found
@pytest.mark.parametrize("targets", ["embed_tokens$", r"norm$", "act_fn$", r"\.gate$"])
def test_layers_that_are_not_linear_are_named_as_such(targets):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("mixtral", **EXPERTS))
    with pytest.raises(NoTargets, match=r"targets: they match .*, and masks are of linear layers"):
        select(model, targets)


@pytest.mark.found
def test_zeros_are_those_of_a_mask_and_closed_gates_those_of_training():
    """A gate of a weight that is 0 already may be closed, and deletes nothing."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.view(-1)[:3] = 0
    attached = attach(model)
    layer = next(iter(attached.layers.values()))
    with torch.no_grad():
        layer.gate_logits.view(-1)[:5] = -1
    mask = export(attached, Base("m", "0" * 64))
    assert (attached.closed, mask.zeros) == (5, 2)
    assert not hasattr(attached, "zeros")
