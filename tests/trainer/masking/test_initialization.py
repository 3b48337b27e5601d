"""Initial gates: their sparsity, their distributions, and the seed."""

import math

import pytest
import torch
from bmt_trainer.masking.attach import Attached, attach
from bmt_trainer.masking.equations import unimportant, wanda_scores
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState

from tests.support.tiny_model import tiny_llama


def test_initial_sparsity_equals_the_papers():
    """η Φ(3) + (1 - η) Φ(-3) ≈ 0.18 % (section 4)."""
    state = MaskState()
    big = MaskedLinear.wrap(torch.nn.Linear(1024, 2048), state)
    attached = Attached(state, {"big": big})
    eta = 1 / 2048
    init_gates(attached, {"big": torch.rand(1024)}, eta=eta)
    phi = 0.5 * (1 + math.erf(3 / math.sqrt(2)))
    expected = eta * phi + (1 - eta) * (1 - phi)
    assert 0.0017 < expected < 0.0019
    # Binomial: standard deviation of the share over 2 M gates.
    sd = math.sqrt(expected / attached.numel)
    assert abs(attached.sparsity - expected) < 5 * sd
    low = unimportant(wanda_scores(big.weight, torch.rand(1024)), eta)
    assert low.sum() == int(big.weight.numel() * eta)


def test_gates_are_the_two_gaussians_and_depend_on_the_seed_alone():
    def gates(seed, std=0.01):
        attached = attach(tiny_llama())
        norms = {n: torch.ones(m.in_features) for n, m in attached.layers.items()}
        init_gates(attached, norms, eta=0.25, seed=seed, std=std)
        scores = [wanda_scores(m.weight, torch.ones(32)) for m in attached.layers.values()]
        low = [unimportant(s, 0.25) for s in scores]
        return torch.stack(attached.gates()).detach(), torch.stack(low)

    G, low = gates(0)
    assert torch.equal(G, gates(0)[0])
    assert not torch.equal(G, gates(1)[0])
    assert abs(G[low].mean() + 0.03) < 0.002
    assert abs(G[~low].mean() - 0.03) < 0.002
    assert abs(G[low].std() - 0.01) < 0.001
    exact, low = gates(0, std=0.0)
    assert torch.equal(exact, torch.where(low, -0.03, 0.03))


@pytest.mark.found
def test_starts_without_picks_and_among_weights_that_are_not_0():
    model = tiny_llama()
    attached = attach(model)
    norms = {n: torch.ones(m.in_features) for n, m in attached.layers.items()}
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.weight.view(-1)[::2] = 0

    def effective(**changes):
        init_gates(attached, norms, **{"eta": 0.1, "tail": False, **changes})
        return [int((m.gated_weight.flatten()[m.zero_positions()] != 0).sum()) for m in layers]

    layers = list(attached.layers.values())
    counts = [int(0.1 * (m.gated_weight != 0).sum()) for m in layers]
    assert effective() == [0] * len(layers)
    assert effective(std=0.0, nonzero=True) == counts
    assert min(counts) > 0
    assert effective(eta=0.0) == [0] * len(layers)
    assert effective(eta=0.0, std=1.0, tail=True) != [0] * len(layers)
