"""How long a step of a given size may take, learnt from the steps that ran."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Steps remembered for each size: long enough to hold a slow one, short enough to forget it.
_KEEP = 16


@dataclass(slots=True)
class _Class:
    """Recent steps of about one size: (tokens, seconds), the longest, the most per token."""

    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_KEEP))
    longest: float = 0.0
    rate: float = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        self.recent.append((tokens, seconds))
        self.longest = max(s for _, s in self.recent)
        self.rate = max(s / n for n, s in self.recent)


class StepTimes:
    """The longest recent step by size. Sizes are tokens, in classes of a factor of two.

    A step costs a fixed part and a part per token. So one of unknown size takes no longer than a
    known smaller one grown in proportion, and no longer than a known larger one.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        self._asked: dict[int, float] = {}

    def note(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` > 0 tokens took `seconds`, change of mask included."""
        self._classes.setdefault(tokens.bit_length(), _Class()).note(tokens, seconds)
        self._asked.clear()

    def expect(self, tokens: int) -> float:
        """Seconds that a step of `tokens` tokens takes at most; 0 where no step ran yet."""
        known = self._asked.get(tokens)
        if known is None:
            known = self._asked[tokens] = self._expect(tokens)
        return known

    def _expect(self, tokens: int) -> float:
        size = tokens.bit_length()
        below = [s for s in self._classes if s <= size]
        above = [s for s in self._classes if s > size]
        larger = self._classes[min(above)].longest if above else float("inf")
        if not below:
            return larger if above else 0.0
        grown = self._classes[max(below)].rate * tokens
        return max(*(self._classes[s].longest for s in below), min(grown, larger))
