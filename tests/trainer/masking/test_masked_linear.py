"""Masked layers: values and gradients against autograd in fp64, modes, and the hard cache."""

import copy

import pytest
import torch
from bmt_trainer.masking.equations import hard_weight, soft_weight
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState, _SoftLinear
from torch import nn
from torch.nn import functional as F


def layer(alpha=100.0, *, bias=False, dtype=torch.float64, gates=0.05, seed=0):
    torch.manual_seed(seed)
    made = MaskedLinear.wrap(nn.Linear(7, 5, bias=bias, dtype=dtype), MaskState(alpha))
    made.gate_logits = nn.Parameter(
        gates * torch.randn(5, 7, dtype=torch.promote_types(dtype, torch.float32))
    )
    return made


def reference(made, x, regularizer):
    """Eq. 6 and the regularizer as written in the paper, for autograd."""
    G = made.gate_logits.detach().clone().requires_grad_()
    x = x.detach().clone().requires_grad_()
    W = made.weight.detach() * torch.sigmoid(made.state.alpha * G)
    y = F.linear(x, W, made.bias)
    return y, -regularizer * W.square().sum(), G, x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 100.0, 300.0])
@pytest.mark.parametrize("regularizer", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_forward_and_gradients_equal_autograd_in_float64(bias, alpha, regularizer, shape):
    made = layer(alpha, bias=bias)
    made.state.regularizer = regularizer
    made.train()
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(*shape[:-1], 5, dtype=torch.float64)
    y = made(x)
    (y * seed).sum().backward()
    expected, penalty, G, x2 = reference(made, x, regularizer)
    ((expected * seed).sum() + penalty).backward()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(made.gate_logits.grad, G.grad, rtol=1e-6, atol=1e-14)
    assert made.weight.grad is None


@pytest.mark.parametrize("mode", ["soft", "hard", "off"])
def test_live_gates_alone_give_the_same_result_as_all_gates(mode):
    """The other gates have a sigmoid of 1: z >= 16.7 in fp32."""
    dense = layer(1000.0, dtype=torch.float32, gates=0.02)
    with torch.no_grad():
        dense.gate_logits.abs_()
        dense.gate_logits.view(-1)[::4] -= 0.02
    live = copy.deepcopy(dense)
    S = (dense.gate_logits * 1000 <= 20).flatten().nonzero().flatten()
    assert 0 < S.numel() < 35
    live.train_only(S)
    outputs = []
    for made in (dense, live):
        made.train()
        made.state.regularizer = 0.3
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with made.state.use(mode):
            y = made(x)
        y.square().sum().backward()
        outputs.append((y, x.grad, made.effective_weight(mode)))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    if mode == "soft":
        gradient = dense.gate_logits.grad.flatten()
        # The sigmoid of a vector and that of its tail may differ in the last bit.
        torch.testing.assert_close(live.gate_logits.grad, gradient[S], rtol=1e-6, atol=0)
        rest = torch.ones(35, dtype=torch.bool)
        rest[S] = False
        assert float(gradient[rest].abs().max()) < 1e-5
    assert torch.equal(dense.zero_positions(), live.zero_positions())


def test_gradcheck():
    made = layer(30.0)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)

    def f(x, G):
        return _SoftLinear.apply(x, made.weight, G, 30.0, 0.0)

    assert torch.autograd.gradcheck(f, (x, made.gate_logits))


def test_gradient_in_fp32_is_right_when_autograds_is_zero():
    """At z = 30, σ(z) is 1 in fp32, so (1 - σ) σ is 0; the true slope is e^-30."""
    made = layer(1000.0, dtype=torch.float32)
    with torch.no_grad():
        made.gate_logits.fill_(0.03)
    x = torch.randn(4, 7)
    made(x).sum().backward()
    _, _, G, _ = reference(made, x, 0)
    F.linear(x, made.weight * torch.sigmoid(1000.0 * G)).sum().backward()
    assert not G.grad.any()
    z = 1000.0 * made.gate_logits.detach().double()
    slope = 1000.0 * torch.sigmoid(z) * torch.sigmoid(-z)
    expected = x.double().sum(0) * made.weight.double() * slope
    torch.testing.assert_close(made.gate_logits.grad.double(), expected, rtol=1e-4, atol=0)


def test_regularizer_is_off_outside_of_training():
    made = layer()
    made.state.regularizer = 0.5
    made.eval()
    x = torch.zeros(1, 7, dtype=torch.float64)
    made(x).sum().backward()
    assert not made.gate_logits.grad.any()
    made.train()
    made(x).sum().backward()
    assert made.gate_logits.grad.any()


def test_modes():
    made = layer(bias=True, dtype=torch.float32)
    x = torch.randn(3, 7)
    W, G = made.weight, made.gate_logits
    state = made.state
    for mode, weight in (
        ("soft", soft_weight(W, G, state.alpha)),
        ("hard", W * (G > 0)),
        ("off", W),
    ):
        with state.use(mode):
            torch.testing.assert_close(made(x), F.linear(x, weight, made.bias))
            assert torch.equal(made.effective_weight(), made.effective_weight(mode))
        assert torch.equal(made.effective_weight(mode), weight)
        assert state.mode == "soft"


def test_an_error_restores_the_mode():
    state = MaskState()
    with pytest.raises(KeyError), state.use("off"):
        raise KeyError
    assert state.mode == "soft"


def test_hard_weight_follows_the_gates_within_one_block():
    made = layer(dtype=torch.float32)
    with made.state.use("hard"):
        before = made.effective_weight()
        assert made.effective_weight() is before  # kept for generation
        with torch.no_grad():
            made.gate_logits.neg_()
        assert torch.equal(made.effective_weight(), hard_weight(made.weight, made.gate_logits))
        assert not torch.equal(made.effective_weight(), before)
    assert not made.state._hard_weights


def test_bf16_weights_keep_fp32_gates_and_sigmoid():
    made = layer(dtype=torch.bfloat16)
    assert made.gate_logits.dtype == torch.float32
    with torch.no_grad():
        made.gate_logits.fill_(0.07)  # z = 7: a bf16 sigmoid would be 1
    assert (soft_weight(made.weight, made.gate_logits, 100.0) != made.weight).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(torch.randn(2, 7))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert made.gate_logits.grad.dtype == torch.float32
    assert made.gate_logits.grad.any()


def test_wrapping_is_in_place_and_keeps_the_name_of_the_weight():
    linear = nn.Linear(3, 2)
    weight = linear.weight
    made = MaskedLinear.wrap(linear, MaskState())
    assert made is linear
    assert isinstance(made, nn.Linear)
    assert made.weight is weight
    assert {k for k, p in made.named_parameters() if p.requires_grad} == {"gate_logits"}
    assert set(made.state_dict()) == {"weight", "bias", "gate_logits"}
    assert torch.equal(made.effective_weight("hard"), weight)


def test_a_copied_model_has_its_own_state():
    model = nn.Sequential(layer(), nn.Identity())
    twin = copy.deepcopy(model)
    twin[0].state.alpha = 5.0
    assert model[0].state.alpha == 100.0
