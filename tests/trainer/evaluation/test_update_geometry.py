"""The measures of an update, on cases with known results."""

import math

import pytest
import torch
from bmt_trainer.evaluation.update_geometry import (
    Geometry,
    effective_rank,
    measure,
    principal,
    summary,
)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_is_their_count(rank):
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(20, rank))
    V, _ = torch.linalg.qr(torch.randn(30, rank))
    assert effective_rank(0.3 * U @ V.T) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_uneven_directions():
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(6 / 4)


def test_spectrum_drift():
    W = torch.diag(torch.tensor([4.0, 3.0]))
    after = torch.diag(torch.tensor([3.0, 5.0]))  # in order: 5, 3
    found = measure(W, after)
    assert found.spectrum_drift == pytest.approx(1 / 5)
    # A rotation leaves the spectrum.
    turn = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    assert measure(W, turn @ W).spectrum_drift == pytest.approx(0, abs=1e-6)


def test_principal_weights_are_the_largest_half_of_the_truncation():
    torch.manual_seed(0)
    W = torch.randn(200, 300)
    U, s, Vh = torch.linalg.svd(W)
    exact = ((U[:, :16] * s[:16]) @ Vh[:16]).abs()
    wanted = exact > exact.flatten().median()
    found = principal(W, 16)
    assert float(found.float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert float((found == wanted).float().mean()) > 0.999
    assert torch.equal(principal(W.T, 16), found.T)
    assert torch.equal(principal(W[:20, :30], 128), _half(W[:20, :30]))


def _half(W):
    return W.abs() > W.abs().flatten().kthvalue(W.numel() // 2).values


def test_overlap_counts_changes_at_principal_weights():
    torch.manual_seed(0)
    W = torch.randn(40, 50)
    mask = principal(W)
    assert measure(W, torch.where(mask, 0, W)).overlap == 1
    assert measure(W, torch.where(mask, W, 0)).overlap == 0
    random = torch.rand_like(W) < 0.5
    assert measure(W, torch.where(random, 0, W)).overlap == pytest.approx(0.5, abs=0.05)
    # A relative change of a thousandth does not count, a larger one does.
    assert measure(W, W * 1.0005).changed == 0
    assert measure(W, W * 1.0005).overlap is None
    assert measure(W, W * 1.01).changed == 1


def test_no_update_has_neither_rank_nor_overlap():
    W = torch.ones(3, 4)
    assert measure(W, W.clone()) == Geometry(None, 0.0, None, 0.0)


def test_means_leave_out_undefined_values():
    measured = [
        ("model.layers.0.mlp.gate_proj", Geometry(4.0, 0.2, 0.4, 0.1)),
        ("model.layers.0.mlp.up_proj", Geometry(None, 0.0, None, 0.0)),
    ]
    found = summary(measured)
    assert found["gate"] == {
        **{"modules": 1, "updated": 1, "effective_rank": 4.0},
        **{"spectrum_drift": 0.2, "overlap": 0.4, "changed": 0.1},
    }
    assert (found["all"]["modules"], found["all"]["updated"]) == (2, 1)
    assert found["all"]["effective_rank"] == 4.0
    assert found["all"]["spectrum_drift"] == 0.1
    assert summary([])["all"]["overlap"] is None
