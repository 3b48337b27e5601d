"""Rule of mode `auto` for masking in place: ski rental. Pure: no tensors, no clock.

A step whose tokens all use one mask can run in two ways. A corrected step costs a little each time.
A step in place costs nothing, but needs a switch before the first such step and a switch back after
the last. The length of the run is not known in advance. So the rule corrects until the corrections
have cost as much as both switches, and then switches:

    switch at the first step t of a run with  c_1 + ... + c_t >= 2 s

c_i is the cost of correcting step i, s the cost of one switch. A run is a sequence of steps in
which all tokens use one mask. A step with several masks or with base tokens needs the base weights,
so it ends the run and reverts the mask. The next run starts from zero, also for the same mask.

Competitive ratio: below 2. If the corrections of a run would cost C in total, the optimum in
hindsight is min(C, 2 s). If C < 2 s the rule pays C; otherwise it pays less than 2 s for
corrections before the switch, and 2 s for the switches. Each fixed strategy, always correcting or
always in place, costs at least the optimum in hindsight, so the ratio to the better of the two is
below 2 as well. Alternation of masks, or of a mask and the base, causes no switch unless one
corrected step costs more than two switches.

The costs come from a model (`kernels/costs.py`), not from a clock: all tensor-parallel ranks decide
alike, runs are reproducible, and no step waits for the device. If the true ratio of the costs is k
times the modeled one, the competitive ratio is 1 + max(k, 1/k).
"""

from __future__ import annotations

from typing import Literal

from bmt_server.ipc.stats_files import Reason
from bmt_server.worker.kernels.costs import KernelCosts


class SwitchPolicy:
    """The rule's state for one worker.

    costs: of the worker's kernel; layers: gate layers of the worker; reason: why the last step ran
    as it did, see `ipc.stats_files.Reason`.
    """

    def __init__(self, costs: KernelCosts, layers: int) -> None:
        self.costs = costs
        self.layers = layers
        self.reason: Reason = "base"
        self._owner: str | None = None
        self._paid = 0.0
        self._price = 0.0

    @property
    def paid(self) -> float:
        """Fraction of the price 2 s that the current run has paid, in [0, 1]; 1 is a switch."""
        return min(1.0, self._paid / self._price) if self._price else 0.0

    def end_run(self, reason: Literal["mixed", "base"]) -> None:
        """Record that the next step is mixed or uses the base only."""
        self.reason = reason
        self._start_run(None)

    def run_in_place(self, mask: str, zeros: int, tokens: int, in_weights: str | None) -> bool:
        """Decide if the next step, in which all tokens use `mask`, runs in place.

        mask: its digest; zeros: its zeros on this worker; tokens: of the step; in_weights: digest
        of the mask in the live weights, None for the base.
        """
        if mask != self._owner:
            self._start_run(mask)
        if in_weights == mask:
            self.reason = "in_place"
            return True
        self._price = 2 * self.costs.switch(self.layers, zeros)
        self._paid += self.costs.correction(self.layers, zeros, tokens)
        if self._paid < self._price:
            self.reason = "paying"
            return False
        # Reset: a mask that leaves the weights during the run, because another one is loaded for
        # example, pays again.
        self._paid = 0.0
        self.reason = "in_place"
        return True

    def _start_run(self, owner: str | None) -> None:
        self._owner, self._paid, self._price = owner, 0.0, 0.0
