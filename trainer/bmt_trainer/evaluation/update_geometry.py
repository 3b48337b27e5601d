"""How an update lies in the weights that it changes (paper, section 5.5).

Legend: W_0, W_+ [d_out, d_in] before and after; ΔW = W_+ - W_0; σ the singular values, falling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bmt_trainer.masking.attach import GATE_PROJECTIONS

#: Of the truncation that tells principal weights, and their share.
RANK, SHARE = 128, 0.5
# A change that a weight stored in bf16 would show (Zhu et al.).
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of one matrix. None: there is no update, so neither rank nor overlap."""

    effective_rank: float | None
    spectrum_drift: float
    overlap: float | None
    changed: float  # share of the weights


@torch.no_grad()
def measure(W0: Tensor, W1: Tensor, *, rank: int = RANK) -> Geometry:
    """The three measures of one matrix, in fp32."""
    before, after = W0.float(), W1.float()
    moved = (after - before).abs() > _TOLERANCE * torch.maximum(before.abs(), after.abs())
    changed = int(moved.sum())
    if torch.equal(before, after):
        return Geometry(None, 0.0, None, 0.0)
    s0 = torch.linalg.svdvals(before)
    drift = float((torch.linalg.svdvals(after) - s0).norm() / s0.norm())
    overlap = None
    if changed:
        overlap = float((principal(before, rank) & moved).sum()) / changed
    return Geometry(effective_rank(after - before), drift, overlap, changed / moved.numel())


def effective_rank(delta: Tensor) -> float:
    """Stable rank ‖ΔW‖_F² / ‖ΔW‖₂²: how many directions an update uses."""
    s = torch.linalg.svdvals(delta.float())
    return float(s.square().sum() / s[0].square())


def principal(W: Tensor, rank: int = RANK) -> Tensor:
    """Bool, as W: the half of the entries that are greatest in W's best rank-`rank` approximation.

    All of W where it has no more directions than that. By the eigenvectors of W Wᵀ, in fp64: a
    randomised truncation has a fifth of the entries on the wrong side where the spectrum is flat.
    """
    wide = W if W.shape[0] <= W.shape[1] else W.T
    size = wide.float().abs()
    if rank < wide.shape[0]:
        exact = wide.double()
        U = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:]  # ascending
        size = (U @ (U.T @ exact)).float().abs()
    keep = round(size.numel() * SHARE)
    # kthvalue, because torch.quantile refuses more than 16 M elements.
    found = size > size.flatten().kthvalue(size.numel() - keep).values
    return found if wide is W else found.T


def summary(found: Sequence[tuple[str, Geometry]]) -> dict[str, dict[str, Any]]:
    """Means over gate projections alone and over all modules, undefined ones left out.

    The paper averages over all attention and MLP layers; six of seven have no update by a mask.
    """
    gates = [g for name, g in found if re.search(GATE_PROJECTIONS, name)]
    return {"gate": _means(gates), "all": _means([g for _, g in found])}


def _means(found: Iterable[Geometry]) -> dict[str, Any]:
    rows = [asdict(g) for g in found]
    means: dict[str, Any] = {"modules": len(rows)}
    for key in ("effective_rank", "spectrum_drift", "overlap", "changed"):
        values = [row[key] for row in rows if row[key] is not None]
        means[key] = sum(values) / len(values) if values else None
        if key == "effective_rank":
            means["updated"] = len(values)
    return means
