"""When `auto` puts a mask into the weights: a ski-rental rule. Pure; no tensors, no clock.

A step in which one mask owns all tokens can be had in two ways: corrected, which costs a little
each time, or in place, which costs nothing a step but a switch before it and another back. How
long the mask will own the steps is not known. So it pays corrections until they would have paid
for the switch, then switches:

    go in place at the first step t of a run with  c_1 + ... + c_t >= 2 s,

c_i being what correcting step i costs and s what one switch costs. A run is a sequence of steps
that one mask owns; a step that mixes masks or belongs to the base needs the base in the weights,
so it ends the run and the mask leaves at once. The next run pays anew, also if it is the same
mask's.

Never twice the cost of what hindsight would do: a run whose corrections cost C in all would best
have cost min(C, 2 s). Where C < 2 s this rule pays C; else less than 2 s of corrections before the
switch, and 2 s for it. Every fixed choice, always correcting or always in place, is one that
hindsight could make, so the ratio to the better of the two is below 2 as well. Alternation of
masks, or of a mask and the base, costs no switch unless one corrected step costs more than two.

Costs are counted, not timed: all tensor-parallel ranks decide alike, runs repeat, and nothing
waits for the device. If the true price is k times the assumed one, the ratio is 1 + max(k, 1/k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bmt_server.ipc.stats_files import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds that masking takes on one kind of device."""

    switch_layer: float  # one switch, for each layer, whatever the mask
    switch_zero: float  # and for each zero written
    correct_layer: float  # one corrected step, for each layer
    correct_zero: float  # for each zero, whatever the tokens: its column and value are read
    correct_token: float  # for each zero and token: a multiply-add

    def switch(self, layers: int, zeros: int) -> float:
        """One change between the base and a mask of `zeros` zeros in `layers` layers."""
        return layers * self.switch_layer + zeros * self.switch_zero

    def correction(self, layers: int, zeros: int, tokens: int) -> float:
        """One step of `tokens` tokens, all of one mask, corrected."""
        per_zero = self.correct_zero + tokens * self.correct_token
        return layers * self.correct_layer + zeros * per_zero


# Measured on one core of an AMD EPYC, 30 layers of 1536 x 576 in bf16: 4.1 ms for a switch there
# and back, 0.7 ms + 0.28 ms a token for a step.
PORTABLE = Costs(
    switch_layer=66e-6,
    switch_zero=3e-9,
    correct_layer=20e-6,
    correct_zero=4e-9,
    correct_token=5.5e-9,
)
# Measured on two cores of an AMD EPYC, layers of 14336 x 4096 in bf16, 0.2 %: `make bench-swap` and
# `benchmarks/kernel.py`, see docs/log.md. A place in the weights is a cache line of its own, while
# a correction reads the mask in order and shares its reads among the tokens.
NATIVE = Costs(
    switch_layer=5e-6,
    switch_zero=5e-9,
    correct_layer=1e-6,
    correct_zero=1e-9,
    correct_token=0.08e-9,
)
# Measured on an H100, layers of 14336 x 4096 in bf16, 0.2 %: `benchmarks/gpu.py`, see docs/log.md;
# but for switch_layer: a switch is one launch for all layers, which the host makes outside of the
# step's graph, and what that costs where a mask is small was not measured. A corrected layer is
# priced over the launch that ends at once, which a step in place has too. Tokens are priced as
# decoding ones; a prompt's, in tiles, are four times cheaper, and pay for a switch all the same.
GPU = Costs(
    switch_layer=5e-6,
    switch_zero=80e-12,
    correct_layer=2.6e-6,
    correct_zero=1e-12,
    correct_token=4e-12,
)


class SwitchRule:
    """Decides step by step; one for each worker."""

    def __init__(self, costs: Costs, layers: int) -> None:
        self.costs = costs
        self.layers = layers
        self.reason: Reason = "base"
        self._owner: str | None = None
        self._paid = 0.0
        self._price = 0.0

    @property
    def paid(self) -> float:
        """Share of the switch's price that the present run has paid; the mask goes in at 1."""
        return min(1.0, self._paid / self._price) if self._price else 0.0

    def shared(self, reason: Literal["mixed", "base"]) -> None:
        """The coming step does not belong to one mask."""
        self.reason = reason
        self._begin(None)

    def owned(self, mask: str, zeros: int, tokens: int, in_weights: str | None) -> bool:
        """Whether the coming step, owned by `mask`, is to run in place.

        mask: its digest; zeros: its zeros on this worker; tokens: of the step; in_weights: the
        digest of the mask in the weights now, None for the base.
        """
        if mask != self._owner:
            self._begin(mask)
        if in_weights == mask:
            self.reason = "in_place"
            return True
        self._price = 2 * self.costs.switch(self.layers, zeros)
        self._paid += self.costs.correction(self.layers, zeros, tokens)
        if self._paid < self._price:
            self.reason = "paying"
            return False
        # Spent: a mask that is taken out of the weights meanwhile, to load another say, pays anew.
        self._paid = 0.0
        self.reason = "in_place"
        return True

    def _begin(self, owner: str | None) -> None:
        self._owner, self._paid, self._price = owner, 0.0, 0.0
