"""A linear layer with one trainable gate logit per frozen weight (paper, section 4).

Shapes: W [d_out, d_in] frozen weight; G [d_out, d_in] fp32 gate logits; x [..., d_in]; y and its
gradient gy [..., d_out]; S [n] int64, flat positions in W of the gates that are trained, if not
all of them are (`MaskedLinear.train_only`); G is then [n]. α, λ and W̃ as in `equations`. Of a
projection that is fused with another one, only some rows have gates (`MaskedLinear.rows`): there
G, S, W̃ and Ŵ are of these rows, and the others of W stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmt_trainer.masking.equations import (
    gate_gradient,
    hard_weight,
    regularized_gradient,
    soft_weight,
    teacher_gates,
)
from bmt_trainer.masking.gated_rows import ALL_ROWS, GatedRows

Mode = Literal["soft", "hard", "off", "teacher"]


def _unsharded(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class ParameterAccess:
    """Reading and writing of parameters that the model's wrapper may shard; by default none is.

    full_tensor(parameter) returns all of a parameter; assign(parameter, values) sets it from values
    of its full shape.
    """

    full_tensor: Callable[[Tensor], Tensor] = _unsharded
    assign: Callable[[Tensor, Tensor], object] = Tensor.copy_


@dataclass(eq=False)
class MaskState:
    """State shared by all masked layers of one model, so that one assignment switches all of them.

    `model.training` cannot select soft or hard: trainers call `model.train()` and then generate.
    α and the mode must not change between a forward pass and its backward pass.
    """

    alpha: float = 1e2
    regularizer: float = 0.0  # λ, of one backward pass
    mode: Mode = "soft"
    # Keep the hard weights while a `use` lasts: generation calls each layer once a token. Off if
    # layers are sharded, because the kept weights are not.
    cache_hard_weights: bool = True
    access: ParameterAccess = field(default_factory=ParameterAccess)
    # By layer id: the version of its gates, and the hard weight for it.
    _hard_weights: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    @contextmanager
    def use(self, mode: Mode) -> Iterator[None]:
        """Run the block in `mode`: "soft" (Eq. 6), "hard" (Eq. 8), "off" (the base model), or
        "teacher" (Eq. 8 with the teacher's gates, see `MaskedLinear.start_teacher`)."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before
            self._hard_weights.clear()

    @contextmanager
    def unregularized(self) -> Iterator[None]:
        """Forward passes in the block add no regularizer in their backward passes."""
        before, self.regularizer = self.regularizer, 0.0
        try:
            yield
        finally:
            self.regularizer = before

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskState:
        copy = MaskState(
            self.alpha, self.regularizer, self.mode, self.cache_hard_weights, self.access
        )
        memo[id(self)] = copy
        return copy


class _SoftLinear(torch.autograd.Function):
    """y = x W̃ᵀ (Eq. 6); the backward adds the gradient of -λ‖W̃‖² in closed form.

    Saves x, W and G only; the backward computes W̃ again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        W: Tensor,
        G: Tensor,
        alpha: float,
        lam: float,
        rows: GatedRows = ALL_ROWS,
    ) -> Tensor:
        ctx.save_for_backward(x, W, G)
        ctx.rows, ctx.alpha, ctx.lam = rows, alpha, lam
        return F.linear(x, rows.replaced(W, soft_weight(rows.of(W), G, alpha), x.dtype))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W, G = ctx.saved_tensors
        W_soft = soft_weight(ctx.rows.of(W), G, ctx.alpha)
        gx = gy @ ctx.rows.replaced(W, W_soft, gy.dtype) if ctx.needs_input_grad[0] else None
        gG = None
        if ctx.needs_input_grad[2]:
            grad = _weight_gradient(x, ctx.rows.of_output(gy))
            gG = gate_gradient_of(grad, W_soft, G, ctx.alpha, ctx.lam)
        return gx, None, gG, None, None, None


class _LiveLinear(torch.autograd.Function):
    """`_SoftLinear` with gates at the positions S only.

    All other weights stay as they are: σ(αG) of their gates is 1 in fp32.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        W: Tensor,
        G: Tensor,
        S: Tensor,
        alpha: float,
        lam: float,
        rows: GatedRows = ALL_ROWS,
    ) -> Tensor:
        ctx.save_for_backward(x, W, G, S)
        ctx.rows, ctx.alpha, ctx.lam = rows, alpha, lam
        W_soft = soft_weight(rows.of(W).view(-1)[S], G, alpha)  # [n]
        return F.linear(x, rows.filled(W.to(x.dtype, copy=True), S, W_soft))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W, G, S = ctx.saved_tensors
        W_soft = soft_weight(ctx.rows.of(W).view(-1)[S], G, ctx.alpha)  # [n]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = gy @ ctx.rows.filled(W.to(gy.dtype, copy=True), S, W_soft)
        gG = None
        if ctx.needs_input_grad[2]:
            grad = _weight_gradient(x, ctx.rows.of_output(gy)).view(-1)[S]
            gG = gate_gradient_of(grad, W_soft, G, ctx.alpha, ctx.lam)
        return gx, None, gG, None, None, None, None


def _weight_gradient(x: Tensor, gy: Tensor) -> Tensor:
    """∂L/∂W̃ = gyᵀ x [d_out, d_in], in gy's dtype."""
    return gy.reshape(-1, gy.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(gy.dtype)


def gate_gradient_of(grad: Tensor, W_soft: Tensor, G: Tensor, alpha: float, lam: float) -> Tensor:
    """∂(L - λ‖W̃‖²)/∂G in G's dtype, from `grad` = ∂L/∂W̃, which is overwritten."""
    grad = grad.to(W_soft.dtype)
    regularized_gradient(grad, W_soft, lam, out=grad)
    return gate_gradient(grad, W_soft, G, alpha, out=grad).to(G.dtype)


class MaskedLinear(nn.Linear):
    """An `nn.Linear` with a frozen weight and gate logits, made in place by `wrap`.

    A subclass, not a parametrization or a wrapping module, so that `weight` keeps its name in
    the state dict. `weight` is always the unmasked base; `effective_weight` applies the mask.
    """

    gate_logits: nn.Parameter  # G
    teacher_logits: nn.Parameter | None  # G_T of Eq. 4, shaped as G, not trained
    live: Tensor | None  # S, ascending; None if all gates are trained
    rows: GatedRows  # of W that have gates
    state: MaskState

    @classmethod
    def wrap(cls, linear: nn.Linear, state: MaskState, rows: GatedRows = ALL_ROWS) -> MaskedLinear:
        """Turn `linear` itself into a masked layer that keeps every weight (G = 1)."""
        linear.__class__ = cls
        linear.requires_grad_(False)
        assert isinstance(linear, MaskedLinear)
        linear.state, linear.live, linear.rows = state, None, rows
        gates = torch.ones_like(rows.of(linear.weight), dtype=torch.float32)
        linear.gate_logits = nn.Parameter(gates)
        linear.register_parameter("teacher_logits", None)
        return linear

    @property
    def gated_weight(self) -> Tensor:
        """The rows of `weight` that have gates, a view; all of it but for a fused projection."""
        return self.rows.of(self.weight)

    @property
    def holder(self) -> Tensor:
        """The parameter that holds the weight."""
        return self.weight

    def effective_weight(self, mode: Mode | None = None) -> Tensor:
        """The weight that `mode` computes with, [d_out, d_in] in W's dtype; default: the current
        mode. Raises ValueError in mode "teacher" without a teacher.
        """
        mode = mode or self.state.mode
        if mode == "off":
            return self.weight
        if mode == "hard":
            return self._hard_weight()
        if mode == "teacher":
            return self._replaced(hard_weight(self.gated_weight, self._teacher()))
        W, G, alpha = self.gated_weight, self.gate_logits, self.state.alpha
        if self.live is None:
            return self._replaced(soft_weight(W, G, alpha))
        return self._filled(soft_weight(W.view(-1)[self.live], G, alpha))

    def _replaced(self, values: Tensor) -> Tensor:
        """A weight as W with `values` in the rows that have gates."""
        return self.rows.replaced(self.weight, values, self.weight.dtype)

    def _filled(self, values: Tensor) -> Tensor:
        """A copy of W with `values` [n] at the positions of the trained gates."""
        assert self.live is not None
        return self.rows.filled(self.weight.clone(), self.live, values)

    @torch.no_grad()
    def start_teacher(self) -> None:
        """Add a teacher's gates, G_T = G. Raises ValueError unless all gates are trained.

        G_T is a parameter, not a buffer, so that checkpoints keep it next to the gates.
        """
        if self.live is not None:
            raise ValueError("a teacher needs all gates; do not restrict training with train_only")
        self.teacher_logits = nn.Parameter(self.gate_logits.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def update_teacher(self, rate: float) -> None:
        """Eq. 4 on gates with γ = `rate`. Raises ValueError without a teacher."""
        teacher = self._teacher()
        teacher.copy_(teacher_gates(teacher, self.gate_logits, rate))

    @torch.no_grad()
    def train_only(self, positions: Tensor) -> None:
        """Train the gates at these flat positions only, int64 [n] ascending; the other weights are
        kept. Every gate that is or may become <= 0 must be among them (`live_positions`).

        Raises ValueError on a second call.
        """
        if self.live is not None:
            raise ValueError("the trained gates are chosen already; call train_only once")
        self.live = positions
        self.gate_logits = nn.Parameter(self.gate_logits.flatten()[positions])

    @torch.no_grad()
    def zero_positions(self) -> Tensor:
        """Flat positions of the weights that the hard mask zeros (G <= 0), int64 ascending, in
        the rows that have gates.

        Collective if the model's wrapper shards the gates: every process must call it.
        """
        zero = self.state.access.full_tensor(self.gate_logits) <= 0
        positions = zero.flatten().nonzero().flatten()
        return positions if self.live is None else self.live[positions]

    def forward(self, x: Tensor) -> Tensor:
        if self.state.mode != "soft":
            return F.linear(x, self.effective_weight(), self.bias)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # A validation loss is not trained on, so it is not regularized.
        lam = self.state.regularizer if self.training else 0.0
        W, G, alpha = self.weight, self.gate_logits, self.state.alpha
        if self.live is None:
            y = _SoftLinear.apply(x, W, G, alpha, lam, self.rows)
        else:
            y = _LiveLinear.apply(x, W, G, self.live, alpha, lam, self.rows)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _teacher(self) -> nn.Parameter:
        if self.teacher_logits is None:
            raise ValueError("the layer has no teacher; call start_teacher() first")
        return self.teacher_logits

    @torch.no_grad()
    def _hard_weight(self) -> Tensor:
        version = self.gate_logits._version
        cached = self.state._hard_weights.get(id(self))
        if cached is not None and cached[0] == version:
            return cached[1]
        if self.live is None:
            weight = self._replaced(hard_weight(self.gated_weight, self.gate_logits))
        else:
            live = hard_weight(self.gated_weight.view(-1)[self.live], self.gate_logits)
            weight = self._filled(live)
        # Only inside `use`, whose end frees it.
        if self.state.mode == "hard" and self.state.cache_hard_weights:
            self.state._hard_weights[id(self)] = (version, weight)
        return weight
