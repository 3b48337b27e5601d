"""Upper estimate of a step's duration by its number of tokens, from recent steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Recent steps per size class: enough to include a slow one, few enough to forget it.
_KEEP = 16


@dataclass(slots=True)
class _SizeClass:
    """Recent steps of similar size: (tokens, seconds), the longest, the most seconds per token."""

    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_KEEP))
    longest: float = 0.0
    rate: float = 0.0

    def record(self, tokens: int, seconds: float) -> None:
        self.recent.append((tokens, seconds))
        self.longest = max(s for _, s in self.recent)
        self.rate = max(s / n for n, s in self.recent)


class StepTimeEstimate:
    """The longest recent step by size. Size classes are powers of two of the tokens.

    A step costs a fixed part and a part per token. So a step of unknown size takes at most as long
    as a known smaller one scaled in proportion, and at most as long as a known larger one.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _SizeClass] = {}
        self._cache: dict[int, float] = {}

    def record(self, tokens: int, seconds: float) -> None:
        """Record a step of `tokens` > 0 tokens that took `seconds`, including a switch of masks."""
        self._classes.setdefault(tokens.bit_length(), _SizeClass()).record(tokens, seconds)
        self._cache.clear()

    def seconds(self, tokens: int) -> float:
        """Upper estimate for a step of `tokens` tokens, seconds; 0 before the first step."""
        known = self._cache.get(tokens)
        if known is None:
            known = self._cache[tokens] = self._compute(tokens)
        return known

    def _compute(self, tokens: int) -> float:
        size = tokens.bit_length()
        below = [s for s in self._classes if s <= size]
        above = [s for s in self._classes if s > size]
        larger = self._classes[min(above)].longest if above else float("inf")
        if not below:
            return larger if above else 0.0
        scaled = self._classes[max(below)].rate * tokens
        return max(*(self._classes[s].longest for s in below), min(scaled, larger))
