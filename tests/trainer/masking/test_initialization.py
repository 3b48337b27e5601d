"""Wanda scores and the gates' first values."""

import math

import torch
from bmt_trainer.masking.attach import Attached, attach
from bmt_trainer.masking.initialization import init_gates, input_norms, unimportant
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState

from tests.support.tiny_model import tiny_llama


def naive_norms(model, prompts, name):
    """‖X_j‖ by running one prompt at a time, without padding."""
    total = None
    module = model.get_submodule(name)
    inputs = []
    handle = module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    for prompt in prompts:
        inputs.clear()
        with torch.no_grad():
            model(torch.tensor([prompt]))
        for token in inputs[0][0]:
            square = token.double() ** 2
            total = square if total is None else total + square
    handle.remove()
    return total.sqrt()


def test_norms_equal_a_naive_loop_and_leave_padding_out():
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    model = tiny_llama()
    name = "model.layers.1.mlp.gate_proj"
    expected = naive_norms(model, prompts, name)
    attached = attach(model)
    for gate in attached.gates():
        gate.data.fill_(-1.0)  # calibration sees the base whatever the gates are

    def batch(rows):
        size = max(map(len, rows))
        return {
            "input_ids": torch.tensor([r + [0] * (size - len(r)) for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (size - len(r)) for r in rows]),
        }

    norms = input_norms(model, attached, [batch(prompts[:2]), batch(prompts[2:])])
    torch.testing.assert_close(norms[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert attached.state.mode == "soft"
    assert not model.get_submodule(name)._forward_pre_hooks


def test_unimportant_are_the_lowest_scores_of_the_whole_matrix():
    torch.manual_seed(0)
    W, norms = torch.randn(20, 30), torch.rand(30)
    scores = sorted(
        (abs(W[i, j].item()) * norms[j].item(), i, j) for i in range(20) for j in range(30)
    )
    low = unimportant(W, norms, 0.05)
    assert {(i, j) for _, i, j in scores[:30]} == {tuple(p) for p in low.nonzero().tolist()}


def test_a_matrix_smaller_than_one_over_eta_has_one_unimportant_weight():
    low = unimportant(torch.randn(4, 4), torch.ones(4), 1 / 2048)
    assert low.sum() == 1


def test_initial_sparsity_is_that_of_the_paper():
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
    low = unimportant(big.weight, torch.rand(1024), eta)
    assert low.sum() == int(big.weight.numel() * eta)


def test_gates_are_the_two_gaussians_and_depend_on_the_seed_alone():
    def gates(seed, std=0.01):
        attached = attach(tiny_llama())
        norms = {n: torch.ones(m.in_features) for n, m in attached.layers.items()}
        init_gates(attached, norms, eta=0.25, seed=seed, std=std)
        low = [unimportant(m.weight, torch.ones(32), 0.25) for m in attached.layers.values()]
        return torch.stack(attached.gates()).detach(), torch.stack(low)

    G, low = gates(0)
    assert torch.equal(G, gates(0)[0])
    assert not torch.equal(G, gates(1)[0])
    assert abs(G[low].mean() + 0.03) < 0.002
    assert abs(G[~low].mean() - 0.03) < 0.002
    assert abs(G[low].std() - 0.01) < 0.001
    exact, low = gates(0, std=0.0)
    assert torch.equal(exact, torch.where(low, -0.03, 0.03))
