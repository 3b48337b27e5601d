"""Live gates by sharpness, and the positions that are trained."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.live_gates import LIMIT, live_positions

from tests.support.tiny_model import tiny_llama


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    """Two million gates of Eq. 9, one in 2,048 of them unimportant."""
    generator = torch.Generator().manual_seed(0)
    gates = 0.03 + 0.01 * torch.randn(2_000_000, generator=generator)
    gates[: len(gates) // 2048] -= 0.06
    return gates


@pytest.mark.parametrize(
    ("alpha", "above", "dead"),
    [(1e2, 1.0, 0.0), (1e3, 0.0187, 0.0), (5e3, 0.0017, 0.890), (1e4, 0.0008, 0.983)],
)
def test_share_of_gates_with_a_gradient(start, alpha, above, dead):
    """σ(z)σ(-z) over 1e-4, and exactly 0 in fp32, at the sharpnesses of the paper's ramps."""
    slope = torch.sigmoid(alpha * start) * torch.sigmoid(-alpha * start)
    assert float((slope > 1e-4).float().mean()) == pytest.approx(above, rel=0.06)
    assert float((slope == 0).float().mean()) == pytest.approx(dead, abs=0.002)


def test_live_positions_hold_all_zeros_and_the_gates_near_zero(start):
    attached = attach(tiny_llama())
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.gate_logits.copy_(start[-layer.gate_logits.numel() :].view_as(layer.gate_logits))
            layer.gate_logits.view(-1)[::97] = -0.02
    sets = live_positions(attached, 1e3)
    for name, layer in attached.layers.items():
        gates = layer.gate_logits.detach().flatten()
        assert set(layer.zero_positions().tolist()) <= set(sets[name].tolist())
        left = torch.ones(len(gates), dtype=torch.bool)
        left[sets[name]] = False
        assert float(gates[left].min()) > LIMIT / 1e3
        assert 0.1 < len(sets[name]) / len(gates) < 0.3
