"""The equations of the paper's section 4 as pure functions, in the order of their numbers.

Shapes and symbols:

    W    [d_out, d_in]  frozen weight, any floating-point dtype
    G    [d_out, d_in]  gate logits, fp32; the only trainable tensors
    G_T  [d_out, d_in]  the teacher's gate logits
    W̃    [d_out, d_in]  soft weight, what training computes with
    Ŵ    [d_out, d_in]  hard weight, what rollouts, evaluation and serving compute with
    s    [d_out, d_in]  Wanda scores
    X    [tokens, d_in] inputs of the layer over the calibration prompts; X_j is column j
    α    sharpness      γ    rate of the teacher       σ  sigmoid
    λ    weight of the regularizer                     η  share of the weights with negative mean
    L    loss of the task: Eq. 1-5

All but `initial_gates` and `unimportant` are elementwise, so W and G may also be the entries at
some positions of the matrix, [n].
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def teacher_gates(G_T: Tensor, G: Tensor, gamma: float) -> Tensor:
    """Eq. 4 on gates: G_T ← (1 - γ) G_T + γ G."""
    return G_T.lerp(G, gamma)


def soft_weight(W: Tensor, G: Tensor, alpha: float) -> Tensor:
    """Eq. 6: W̃ = W ⊙ σ(αG), in the wider of both dtypes: a bf16 sigmoid is 1 from αG ≈ 6.2 on."""
    return W.to(torch.promote_types(W.dtype, G.dtype)) * torch.sigmoid(alpha * G)


def gate_gradient(
    grad: Tensor, W_soft: Tensor, G: Tensor, alpha: float, out: Tensor | None = None
) -> Tensor:
    """The derivative of Eq. 6: ∂L/∂G = ∂L/∂W̃ ⊙ W̃ ⊙ σ(-αG) α, with `grad` = ∂L/∂W̃.

    σ' is written σ(z) σ(-z), not σ(z) (1 - σ(z)): the latter is exactly 0 in fp32 from z ≈ 16.6
    on, which is where gates start. out: where to put it, `grad` itself if its owner needs it no
    more, because the matrices are large.
    """
    return torch.mul(grad, W_soft, out=out).mul_(torch.sigmoid(-alpha * G)).mul_(alpha)


def sharpness(step: int, steps: int, start: float, end: float) -> float:
    """Eq. 7: α(t) = α_start + t/T (α_end - α_start), with t = `step` and T = `steps`."""
    return start + step / steps * (end - start)


def hard_weight(W: Tensor, G: Tensor) -> Tensor:
    """Eq. 8: Ŵ = W ⊙ 1[G > 0], in W's dtype. A selection, because W * 0 would leave -0.0."""
    return torch.where(G > 0, W, torch.zeros((), dtype=W.dtype, device=W.device))


def wanda_scores(W: Tensor, X_norm: Tensor) -> Tensor:
    """s_ij = |W_ij| · ‖X_j‖₂ in fp32 (Sun et al., 2024), with `X_norm` [d_in] = ‖X_j‖₂."""
    # Departure: weights that are 0 score lowest, so picking them deletes nothing.
    return W.float().abs() * X_norm


def unimportant(s: Tensor, eta: float, among: Tensor | None = None) -> Tensor:
    """The condition of Eq. 9, bool [d_out, d_in]: s is within the lowest η of the whole matrix.

    Over the matrix, not per row as in Wanda's code: with η = 1/2048, rows of fewer than 2,048
    weights would have none, which contradicts the paper's numbers for small models. At least one
    weight is unimportant, and weights that tie with the quantile are too; none is with η = 0.
    among: bool, the only weights that are ranked and chosen; default: all.
    """
    # Departure: of the whole matrix; Wanda's code ranks within rows.
    ranked = s.flatten() if among is None else s[among]
    if not eta or not ranked.numel():
        return torch.zeros_like(s, dtype=torch.bool)
    # kthvalue, because torch.quantile refuses more than 16 M elements.
    low = s <= ranked.kthvalue(max(1, int(ranked.numel() * eta))).values
    return low if among is None else low & among


def initial_gates(low: Tensor, mean: float, std: float, generator: Generator) -> Tensor:
    """Eq. 9: G ~ N(-mean, std²) where the weight is unimportant (`low`), else N(mean, std²).

    generator: on the CPU, so that a seed gives the same gates on every device.
    """
    noise = torch.randn(low.shape, generator=generator).to(low.device)
    return torch.where(low, -mean, mean) + std * noise


def regularized_gradient(
    grad: Tensor, W_soft: Tensor, lam: float, out: Tensor | None = None
) -> Tensor:
    """∂(L - λ‖W̃‖₂²)/∂W̃ = ∂L/∂W̃ - 2λW̃, with `grad` = ∂L/∂W̃; MaskLLM's sparse weight regularizer.

    out: as in `gate_gradient`.
    """
    return torch.add(grad, W_soft, alpha=-2 * lam, out=out) if lam else grad
