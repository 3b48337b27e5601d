"""Initial gates: their sparsity, their distributions, and the seed."""

import math

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
