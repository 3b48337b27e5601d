"""Choice of the mask for the next step in mode `scatter`. Pure: no vLLM, times are arguments.

All tokens of a step use one mask. The mask in turn keeps the engine for a quantum; then the mask
with the most runnable requests is next, because steps with many tokens use the hardware best. A
bound on waiting takes precedence: no mask with a runnable request waits longer than `max_wait_s`
while others run. Before each step that the preferred mask would get, the policy adds up one step of
each other mask in the order of their waits; if one of them would start too late, the mask that has
waited longest gets the step instead. So turns shrink as needed, down to one step.

Guarantee: let N masks have runnable requests and let S be their longest step. A mask waits at most
max(max_wait_s, N * S) from when it became runnable, or from its last step, to the start of its next
step: the masks that waited longer run one step each before it, the step in progress at its arrival
is one more, and no other mask runs first once that would break the bound. If steps take longer than
the estimate (`StepTimeEstimate`), the excess is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bmt_server.scheduler.step_time_estimate import StepTimeEstimate


@dataclass(frozen=True, slots=True)
class Demand:
    """Possible work of one mask in the next step: runnable requests, and their tokens."""

    requests: int
    tokens: int


class TurnPolicy:
    """Assigns each step to a mask. Masks are adapter ids; 0, the base, is treated like the others.

    quantum_s: length of a turn unless the bound cuts it; max_wait_s: the bound on waiting; turn:
    the mask in turn. Times are seconds of the caller's clock.
    """

    def __init__(self, quantum_s: float, max_wait_s: float) -> None:
        self.quantum_s = quantum_s
        self.max_wait_s = max_wait_s
        self.step_times = StepTimeEstimate()
        self.turn: int | None = None
        self._turn_ends = 0.0
        # Start of each runnable mask's wait, and True if that is its last step, not an arrival:
        # such a mask ranks behind those that arrived at the same moment.
        self._since: dict[int, tuple[float, bool]] = {}
        self._arrivals: dict[int, float] = {}

    def record_arrival(self, now: float, mask: int) -> None:
        """Record a request's arrival between two steps; if it is runnable, its wait starts now."""
        self._arrivals.setdefault(mask, now)

    def choose(self, now: float, demands: Mapping[int, Demand]) -> int:
        """Return the mask of the next step. `demands`: all runnable masks, not empty."""
        arrivals, self._arrivals = self._arrivals, {}
        self._since = {m: self._since.get(m, (arrivals.get(m, now), False)) for m in demands}
        order = sorted(demands, key=self._since.__getitem__)
        preferred = self._preferred(now, demands)
        return preferred if self._fits(now, preferred, order, demands) else order[0]

    def record_step(self, now: float, mask: int) -> float:
        """Record the start of a step of the chosen mask; return the seconds that it waited."""
        if mask != self.turn or now >= self._turn_ends:
            self.turn, self._turn_ends = mask, now + self.quantum_s
        waited = now - self._since[mask][0]
        self._since[mask] = (now, True)
        return waited

    def guarantee_s(self, demands: Mapping[int, Demand]) -> float:
        """Bound on waiting for these masks: max_wait_s, or more if their steps exceed it."""
        steps = [self.step_times.seconds(d.tokens) for d in demands.values()]
        return max(self.max_wait_s, sum(steps) + max(steps, default=0.0))

    def _preferred(self, now: float, demands: Mapping[int, Demand]) -> int:
        if self.turn in demands and now < self._turn_ends:
            assert self.turn is not None
            return self.turn
        # Ties: first the mask in turn, which needs no switch, then the one that waits longest.
        return max(
            demands, key=lambda m: (demands[m].requests, m == self.turn, -self._since[m][0], -m)
        )

    def _fits(
        self, now: float, preferred: int, order: list[int], demands: Mapping[int, Demand]
    ) -> bool:
        """True if all other masks, in order, still start in time after a step of `preferred`."""
        starts = now + self.step_times.seconds(demands[preferred].tokens)
        for mask in order:
            if mask == preferred:
                continue
            if starts > self._since[mask][0] + self.max_wait_s:
                return False
            starts += self.step_times.seconds(demands[mask].tokens)
        return True
