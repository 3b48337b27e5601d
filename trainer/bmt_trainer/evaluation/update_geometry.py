"""Geometry of a weight update: effective rank, spectrum drift, overlap with the principal weights
(paper, section 5.5).

Legend: W_0, W_+ [d_out, d_in] before and after; ΔW = W_+ - W_0; σ singular values, descending.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bmt_trainer.masking.targets import GATE_PROJECTIONS

#: Rank of the truncation that defines principal weights, and their share of all weights.
RANK, SHARE = 128, 0.5
# Relative change above which a weight stored in bf16 differs (Zhu et al.).
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Measures of one matrix.

    effective_rank: of ΔW, None without an update; spectrum_drift: ‖Δσ‖ / ‖σ‖; overlap: share of
    the changed weights that are principal, None without changes; changed: share of the weights.
    """

    effective_rank: float | None
    spectrum_drift: float
    overlap: float | None
    changed: float


@torch.no_grad()
def measure(W0: Tensor, W1: Tensor, *, rank: int = RANK) -> Geometry:
    """Measure the update of one matrix, W0 to W1, in fp32."""
    before, after = W0.float(), W1.float()
    changed_at = (after - before).abs() > _TOLERANCE * torch.maximum(before.abs(), after.abs())
    changed = int(changed_at.sum())
    if torch.equal(before, after):
        return Geometry(None, 0.0, None, 0.0)
    s0 = torch.linalg.svdvals(before)
    drift = float((torch.linalg.svdvals(after) - s0).norm() / s0.norm())
    overlap = None
    if changed:
        overlap = float((principal(before, rank) & changed_at).sum()) / changed
    return Geometry(effective_rank(after - before), drift, overlap, changed / changed_at.numel())


def effective_rank(delta: Tensor) -> float:
    """Stable rank ‖ΔW‖_F² / ‖ΔW‖₂² of `delta`, [d_out, d_in]."""
    s = torch.linalg.svdvals(delta.float())
    return float(s.square().sum() / s[0].square())


def principal(W: Tensor, rank: int = RANK) -> Tensor:
    """Principal weights, bool [d_out, d_in]: largest half of W's best rank-`rank` approximation.

    W itself if it has no higher rank. By the eigenvectors of W Wᵀ in fp64, because a randomized
    truncation puts a fifth of the entries on the wrong side if the spectrum is flat.
    """
    wide = W if W.shape[0] <= W.shape[1] else W.T
    size = wide.float().abs()
    if rank < wide.shape[0]:
        exact = wide.double()
        U = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:]  # ascending
        size = (U @ (U.T @ exact)).float().abs()
    keep = round(size.numel() * SHARE)
    # kthvalue, because torch.quantile refuses more than 16 M elements.
    mask = size > size.flatten().kthvalue(size.numel() - keep).values
    return mask if wide is W else mask.T


def summary(measured: Sequence[tuple[str, Geometry]]) -> dict[str, dict[str, Any]]:
    """Means over gate projections and over all modules, without undefined values.

    measured: (module name, measures). The paper averages over all attention and MLP layers, of
    which a mask updates one in seven.
    """
    # Departure: gates too, and matrices without an update have no rank.
    gates = [g for name, g in measured if re.search(GATE_PROJECTIONS, name)]
    return {"gate": _means(gates), "all": _means([g for _, g in measured])}


def _means(measures: Iterable[Geometry]) -> dict[str, Any]:
    rows = [asdict(g) for g in measures]
    means: dict[str, Any] = {"modules": len(rows)}
    for key in ("effective_rank", "spectrum_drift", "overlap", "changed"):
        values = [row[key] for row in rows if row[key] is not None]
        means[key] = sum(values) / len(values) if values else None
        if key == "effective_rank":
            means["updated"] = len(values)
    return means
