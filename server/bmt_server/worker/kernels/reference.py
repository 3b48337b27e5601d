"""Naive loops for the masked delta and the masked product, one token at a time.

Tests and documentation compare the kernels with them. Shapes as in `masked_delta.py`; an adapter's
mask is given densely, as the paper writes it: keep [R, K], 1 for weights that stay and 0 for zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def masked_delta(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    keep: Mapping[int, torch.Tensor],
    token_masks: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return y[t, :R] - (W ⊙ (1 - keep[a_t])) x[t] for each token t: [T, R], not rounded.

    y [T, N], x [T, K], weight [R, K]; token_masks: T adapter ids a_t, 0 = base, whose rows are y's.
    dtype: of products and sums.
    """
    zeroed = {a: weight.to(dtype) * (1 - mask.to(dtype)) for a, mask in keep.items()}
    result = y[:, : weight.shape[0]].to(dtype, copy=True)
    for t, adapter in enumerate(token_masks):
        if adapter:
            result[t] -= zeroed[int(adapter)] @ x[t].to(dtype)
    return result


def masked_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    keep: Mapping[int, torch.Tensor],
    token_masks: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return (W ⊙ keep[a_t]) x[t] for each token t, [T, R]: the gate output of the masked model.

    Arguments as in `masked_delta`; tokens with id 0 use W.
    """
    rows = []
    for t, adapter in enumerate(token_masks):
        masked = weight.to(dtype)
        if adapter:
            masked = masked * keep[int(adapter)].to(dtype)
        rows.append(masked @ x[t].to(dtype))
    return torch.stack(rows)
