"""The equations against naive loops, and against MaskLLM's (paper, appendix G)."""

import pytest
import torch
from bmt_trainer.masking.equations import (
    hard_weight,
    regularized_gradient,
    sharpness,
    soft_weight,
    teacher_gates,
    unimportant,
    wanda_scores,
)


def test_teacher_gates_move_by_the_rate():
    G_T, G = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0])
    assert teacher_gates(G_T, G, 0.25).tolist() == [0.75, -0.5]
    assert G_T.tolist() == [1.0, -1.0]


def test_sharpness_is_a_linear_ramp():
    assert [sharpness(t, 4, 1e2, 1e3) for t in range(5)] == [100.0, 325.0, 550.0, 775.0, 1000.0]


def test_a_gate_of_zero_deletes_and_leaves_no_negative_zero():
    W = torch.tensor([[-1.0, 2.0, -3.0]])
    hard = hard_weight(W, torch.tensor([[0.0, 1e-30, -1.0]]))
    assert hard.tolist() == [[0.0, 2.0, 0.0]]
    assert not torch.signbit(hard).any()


def test_unimportant_are_the_lowest_scores_of_the_whole_matrix():
    torch.manual_seed(0)
    W, norms = torch.randn(20, 30), torch.rand(30)
    scores = sorted(
        (abs(W[i, j].item()) * norms[j].item(), i, j) for i in range(20) for j in range(30)
    )
    low = unimportant(wanda_scores(W, norms), 0.05)
    assert {(i, j) for _, i, j in scores[:30]} == {tuple(p) for p in low.nonzero().tolist()}


def test_a_matrix_smaller_than_one_over_eta_has_one_unimportant_weight():
    low = unimportant(wanda_scores(torch.randn(4, 4), torch.ones(4)), 1 / 2048)
    assert low.sum() == 1


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_the_regularizers_gradient_equals_autograd(lam):
    torch.manual_seed(0)
    W_soft = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(5, 7, dtype=torch.float64)
    ((W_soft * grad).sum() - lam * W_soft.square().sum()).backward()
    result = regularized_gradient(grad, W_soft.detach(), lam)
    torch.testing.assert_close(result, W_soft.grad, rtol=1e-12, atol=0)


def test_maskllms_two_candidates_without_noise_are_this_mask():
    """Appendix G: softmax over {keep, delete} of MaskLLM's scaled logits, without Gumbel noise."""
    torch.manual_seed(0)
    kappa, tau = 700.0, 3.5
    logits = 0.03 * torch.randn(5, 7, 2, dtype=torch.float64)  # π of each weight: keep, delete
    keep = torch.softmax(kappa * logits / tau, -1)[..., 0]  # Eq. 10 with C = 2, γ = 0
    candidates = torch.tensor([1.0, 0.0], dtype=torch.float64)
    average = (torch.softmax(kappa * logits / tau, -1) * candidates).sum(-1)
    G = logits[..., 0] - logits[..., 1]  # Δπ
    W = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(average, keep, rtol=1e-12, atol=0)
    torch.testing.assert_close(soft_weight(W, G, kappa / tau), W * average, rtol=1e-12, atol=0)
    # Its choice of the likelier candidate is Eq. 8.
    hard = torch.where(logits.argmax(-1) == 0, W, 0)
    assert torch.equal(hard_weight(W, G), hard)


def test_the_difference_of_gumbels_is_logistic():
    """Eq. 12, where one logistic noise replaces two Gumbel noises."""
    torch.manual_seed(0)
    gumbel = torch.distributions.Gumbel(0.0, 1.0)
    difference = gumbel.sample((200_000,)) - gumbel.sample((200_000,))
    at = torch.linspace(-4, 4, 17)
    below = (difference[:, None] <= at).float().mean(0)
    torch.testing.assert_close(below, torch.sigmoid(at), rtol=0, atol=5e-3)


@pytest.mark.found
def test_weights_that_are_0_are_not_chosen_among_those_that_are_not():
    """Of a dequantized checkpoint all that Wanda picks may be 0 already."""
    torch.manual_seed(0)
    W = torch.randn(20, 30).clamp(min=0)  # half of them are 0
    s = wanda_scores(W, torch.rand(30) + 0.1)
    assert not (unimportant(s, 0.05) & (W != 0)).any()
    low = unimportant(s, 0.05, W != 0)
    assert low.sum() == int(0.05 * (W != 0).sum())
    assert s[low].max() < s[(W != 0) & ~low].min()
    assert s[low].min() > 0
    assert not unimportant(s, 0.05, W > 100).any()


def test_a_share_of_0_chooses_none():
    assert not unimportant(torch.rand(20, 30), 0.0).any()
