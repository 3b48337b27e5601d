"""Which mask owns the coming step in `scatter` mode. No vLLM and no clock: times are arguments.

A step belongs to one mask. The mask in turn keeps the engine for a quantum, then the mask with
most requests that can run is next, for steps of many tokens use the machine best. Above that
stands the bound: no mask with a request that can run waits longer than `max_wait_s` while others
are served. Before each step that the favourite would get, the others are counted up in the order
in which they wait, one step each; where one of them would come too late, the one that waits
longest gets the step instead. Turns so shrink to fit, down to one step.

What holds: let N masks have requests that can run and S be the longest of their steps. A mask
waits at most max(max_wait_s, N * S) from when it could run, or from its last step, to the start
of its next. For: those that waited longer get one step each before it, the step under way when
it came is one more, and nobody else is let in front once that would break the bound. Where steps
take longer than expected (`StepTimes`), the excess is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bmt_server.scheduler.step_time_estimate import StepTimes


@dataclass(frozen=True, slots=True)
class Demand:
    """What a mask could do in the coming step: requests that can run, and their tokens."""

    requests: int
    tokens: int


class Turns:
    """Gives each step to a mask. Masks are adapter ids; 0, the base, is one like the others."""

    def __init__(self, quantum_s: float, max_wait_s: float) -> None:
        self.quantum_s = quantum_s
        self.max_wait_s = max_wait_s
        self.times = StepTimes()
        self.turn: int | None = None
        self._turn_ends = 0.0
        # Since when each mask that can run has been waiting for a step, and whether that was a
        # step of its own: it then comes after those that came at the same moment.
        self._since: dict[int, tuple[float, bool]] = {}
        self._arrivals: dict[int, float] = {}

    def arrived(self, now: float, mask: int) -> None:
        """A request of the mask came between two steps; if it can run, it waits since then."""
        self._arrivals.setdefault(mask, now)

    def choose(self, now: float, demands: Mapping[int, Demand]) -> int:
        """The mask of the coming step. `demands` holds all masks that can run, and is not empty."""
        came, self._arrivals = self._arrivals, {}
        self._since = {m: self._since.get(m, (came.get(m, now), False)) for m in demands}
        order = sorted(demands, key=self._since.__getitem__)
        favourite = self._favourite(now, demands)
        return favourite if self._fits(now, favourite, order, demands) else order[0]

    def began(self, now: float, mask: int) -> float:
        """The chosen mask got its step; returns how long it had waited, in seconds."""
        if mask != self.turn or now >= self._turn_ends:
            self.turn, self._turn_ends = mask, now + self.quantum_s
        waited = now - self._since[mask][0]
        self._since[mask] = (now, True)
        return waited

    def guarantee_s(self, demands: Mapping[int, Demand]) -> float:
        """The bound that holds for these masks: max_wait_s, or more where they are too many."""
        steps = [self.times.expect(d.tokens) for d in demands.values()]
        return max(self.max_wait_s, sum(steps) + max(steps, default=0.0))

    def _favourite(self, now: float, demands: Mapping[int, Demand]) -> int:
        if self.turn in demands and now < self._turn_ends:
            assert self.turn is not None
            return self.turn
        # Of equals the one in turn, which costs no switch, then the one that waits longest.
        return max(
            demands, key=lambda m: (demands[m].requests, m == self.turn, -self._since[m][0], -m)
        )

    def _fits(
        self, now: float, favourite: int, order: list[int], demands: Mapping[int, Demand]
    ) -> bool:
        """Whether all others can still be served in time, in order, after one more step."""
        starts = now + self.times.expect(demands[favourite].tokens)
        for mask in order:
            if mask == favourite:
                continue
            if starts > self._since[mask][0] + self.max_wait_s:
                return False
            starts += self.times.expect(demands[mask].tokens)
        return True
