"""The BMT parameterisation: one trainable logit per frozen weight (paper, section 4, Eq. 6-8).

Legend: W [d_out, d_in] frozen weight; G [d_out, d_in] fp32 gate logits; x [..., d_in];
y, gy [..., d_out]; σ the sigmoid; α the sharpness; λ the regulariser's weight; S the places of
the gates that are trained, all of them or a live set (`MaskedLinear.keep_live`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmt_trainer.distributed import whole

Mode = Literal["soft", "hard", "off", "teacher"]


@dataclass(eq=False)
class MaskState:
    """What all masked layers of one model share, so that one assignment switches all of them.

    `model.training` cannot choose between soft and hard: trainers call `model.train()` and then
    generate. α and the mode must not change between a forward pass and its backward pass.
    """

    alpha: float = 1e2
    regularizer: float = 0.0
    mode: Mode = "soft"
    keep_hard: bool = True  # not where layers are sharded: kept, they would be whole again
    # Hard weights of the layers, kept while a `use` lasts: generation calls each layer per token.
    _hard: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    @contextmanager
    def use(self, mode: Mode) -> Iterator[None]:
        """Run the block in `mode`: "soft" (Eq. 6), "hard" (Eq. 8), "off" (the base model), or
        "teacher" (Eq. 8 with the teacher's gates, see `MaskedLinear.start_teacher`)."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before
            self._hard.clear()

    @contextmanager
    def unregularized(self) -> Iterator[None]:
        """Forward passes in the block add no regulariser in their backward."""
        before, self.regularizer = self.regularizer, 0.0
        try:
            yield
        finally:
            self.regularizer = before

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskState:
        copy = MaskState(self.alpha, self.regularizer, self.mode, self.keep_hard)
        memo[id(self)] = copy
        return copy


class _SoftLinear(torch.autograd.Function):
    """y = x W̃ᵀ with W̃ = W ⊙ σ(αG) (Eq. 6), and -λ‖W̃‖² added to the loss in closed form.

    Saves x, W and G only and recomputes the sigmoid. The backward uses σ(z)σ(-z): σ(z)(1-σ(z))
    is exactly 0 in fp32 from z ≈ 16.6 on, where gates that are still to move begin.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, W: Tensor, G: Tensor, alpha: float, regularizer: float
    ) -> Tensor:
        ctx.save_for_backward(x, W, G)
        ctx.alpha, ctx.regularizer = alpha, regularizer
        return F.linear(x, soft_weight(W, G, alpha).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W, G = ctx.saved_tensors
        soft = soft_weight(W, G, ctx.alpha)
        gx = gy @ soft.to(gy.dtype) if ctx.needs_input_grad[0] else None
        gG = None
        if ctx.needs_input_grad[2]:
            gG = _gate_grad(_weight_grad(x, gy), soft, G, ctx.alpha, ctx.regularizer)
        return gx, None, gG, None, None


class _LiveLinear(torch.autograd.Function):
    """The same where only the gates at flat places S are trained, G being theirs, [|S|].

    All others keep their weight, σ(αG) being 1 in fp32 for them.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, W: Tensor, G: Tensor, S: Tensor, alpha: float, regularizer: float
    ) -> Tensor:
        ctx.save_for_backward(x, W, G, S)
        ctx.alpha, ctx.regularizer = alpha, regularizer
        live = soft_weight(W.view(-1)[S], G, alpha)
        return F.linear(x, _filled(W.to(x.dtype, copy=True), S, live))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W, G, S = ctx.saved_tensors
        soft = soft_weight(W.view(-1)[S], G, ctx.alpha)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = gy @ _filled(W.to(gy.dtype, copy=True), S, soft)
        gG = None
        if ctx.needs_input_grad[2]:
            grad = _weight_grad(x, gy).view(-1)[S]
            gG = _gate_grad(grad, soft, G, ctx.alpha, ctx.regularizer)
        return gx, None, gG, None, None, None


def _weight_grad(x: Tensor, gy: Tensor) -> Tensor:
    """dL/dW̃ [d_out, d_in] in gy's dtype."""
    return gy.reshape(-1, gy.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(gy.dtype)


def _gate_grad(grad: Tensor, soft: Tensor, G: Tensor, alpha: float, regularizer: float) -> Tensor:
    """dL/dG from dL/dW̃ and W̃: dW̃/dG = α W σ(z) σ(-z) = α W̃ σ(-z), z = αG."""
    grad = grad.to(soft.dtype)
    if regularizer:
        grad.add_(soft, alpha=-2 * regularizer)
    return grad.mul_(soft).mul_(torch.sigmoid(-alpha * G)).mul_(alpha).to(G.dtype)


def _filled(W: Tensor, S: Tensor, values: Tensor) -> Tensor:
    """W itself, with `values` at the flat places S."""
    W.view(-1)[S] = values.to(W.dtype)
    return W


def _compute_dtype(W: Tensor, G: Tensor) -> torch.dtype:
    return torch.promote_types(W.dtype, G.dtype)


def soft_weight(W: Tensor, G: Tensor, alpha: float) -> Tensor:
    """W̃ = W ⊙ σ(αG) (Eq. 6), in G's precision or better: a bf16 sigmoid is 1 from z ≈ 6.2 on."""
    return W.to(_compute_dtype(W, G)) * torch.sigmoid(alpha * G)


def hard_weight(W: Tensor, G: Tensor) -> Tensor:
    """Ŵ = W ⊙ 1[G > 0] (Eq. 8), in W's dtype. A selection: a product would leave -0."""
    return torch.where(G > 0, W, torch.zeros((), dtype=W.dtype, device=W.device))


class MaskedLinear(nn.Linear):
    """An `nn.Linear` with a frozen weight and gate logits, made by `wrap`, in place.

    A subclass, not a parametrization or a wrapping module, so that `weight` keeps its name in
    the state dict. `weight` is always the unmasked base: read `effective_weight` to see the mask.
    """

    gate_logits: nn.Parameter  # [d_out, d_in] fp32, or [|S|] of the live ones
    teacher_logits: nn.Parameter | None  # as gate_logits, not trained; G_T of Eq. 4
    live: Tensor | None  # int64 [|S|], flat places, ascending; None: all gates are trained
    state: MaskState

    @classmethod
    def wrap(cls, linear: nn.Linear, state: MaskState) -> MaskedLinear:
        """Turn `linear` itself into a masked layer that keeps every weight (G = 1)."""
        linear.__class__ = cls
        linear.requires_grad_(False)
        assert isinstance(linear, MaskedLinear)
        linear.state, linear.live = state, None
        linear.gate_logits = nn.Parameter(torch.ones_like(linear.weight, dtype=torch.float32))
        linear.register_parameter("teacher_logits", None)
        return linear

    def effective_weight(self, mode: Mode | None = None) -> Tensor:
        """[d_out, d_in] in the weight's dtype: what `mode` (default: the current one) computes."""
        mode = mode or self.state.mode
        if mode == "off":
            return self.weight
        if mode == "hard":
            return self._hard_weight()
        if mode == "teacher":
            if self.teacher_logits is None:
                raise ValueError("there is no teacher; start one with start_teacher()")
            return hard_weight(self.weight, self.teacher_logits)
        W, G, alpha = self.weight, self.gate_logits, self.state.alpha
        if self.live is None:
            return soft_weight(W, G, alpha).to(W.dtype)
        return _filled(W.clone(), self.live, soft_weight(W.view(-1)[self.live], G, alpha))

    @torch.no_grad()
    def start_teacher(self) -> None:
        """Give the layer a teacher's gates, G_T = G; all gates must be trained, not a live set.

        A parameter, not a buffer: checkpoints keep it beside the gates.
        """
        if self.live is not None:
            raise ValueError("a teacher needs all gates; do not choose a live set")
        self.teacher_logits = nn.Parameter(self.gate_logits.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def teach(self, rate: float) -> None:
        """G_T <- (1 - γ) G_T + γ G, γ = `rate` (Eq. 4 on gates)."""
        if self.teacher_logits is None:
            raise ValueError("there is no teacher; start one with start_teacher()")
        self.teacher_logits.lerp_(self.gate_logits, rate)

    @torch.no_grad()
    def keep_live(self, S: Tensor) -> None:
        """Train the gates at flat places S alone, int64 [|S|]; all others keep their weight.

        Every gate that is or may become 0 or less must be among them (see `live_sets`).
        """
        if self.live is not None:
            raise ValueError("the live set is chosen already")
        self.live = S
        self.gate_logits = nn.Parameter(self.gate_logits.flatten()[S])

    @torch.no_grad()
    def deleted(self) -> Tensor:
        """int64 [zeros]: flat places where G <= 0, ascending."""
        at = (whole(self.gate_logits) <= 0).flatten().nonzero().flatten()
        return at if self.live is None else self.live[at]

    def forward(self, x: Tensor) -> Tensor:
        if self.state.mode != "soft":
            return F.linear(x, self.effective_weight(), self.bias)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # A validation loss is not training: no regulariser outside of train mode.
        regularizer = self.state.regularizer if self.training else 0.0
        W, G, alpha = self.weight, self.gate_logits, self.state.alpha
        if self.live is None:
            y = _SoftLinear.apply(x, W, G, alpha, regularizer)
        else:
            y = _LiveLinear.apply(x, W, G, self.live, alpha, regularizer)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def _hard_weight(self) -> Tensor:
        version = self.gate_logits._version
        kept = self.state._hard.get(id(self))
        if kept is not None and kept[0] == version:
            return kept[1]
        if self.live is None:
            weight = hard_weight(self.weight, self.gate_logits)
        else:
            live = hard_weight(self.weight.view(-1)[self.live], self.gate_logits)
            weight = _filled(self.weight.clone(), self.live, live)
        if self.state.mode == "hard" and self.state.keep_hard:  # inside `use`, whose end frees it
            self.state._hard[id(self)] = (version, weight)
        return weight
