"""Places in one block of memory: first fit, neighbours merged when freed."""

from __future__ import annotations

import bisect


class FirstFit:
    """Hands out [offset, offset + size) of `capacity` bytes, in steps of `align` bytes.

    Masks of one model are of like size, so that what a freed one leaves fits the next: first fit
    fragments little, and its lists stay as short as the number of masks.
    """

    def __init__(self, capacity: int, align: int = 64) -> None:
        self.align = align
        self.capacity = capacity // align * align
        self.used = 0  # bytes, rounded up to `align` each
        # Free stretches by offset, never touching each other.
        self._starts: list[int] = [0] if self.capacity else []
        self._sizes: list[int] = [self.capacity] if self.capacity else []
        self._taken: dict[int, int] = {}

    def allocate(self, size: int) -> int | None:
        """An offset, a multiple of `align`, of `size` free bytes; None where no stretch fits."""
        size = max(-(-size // self.align), 1) * self.align
        index = next((i for i, free in enumerate(self._sizes) if free >= size), None)
        if index is None:
            return None
        offset = self._starts[index]
        if self._sizes[index] == size:
            del self._starts[index], self._sizes[index]
        else:
            self._starts[index] += size
            self._sizes[index] -= size
        self._taken[offset] = size
        self.used += size
        return offset

    def free(self, offset: int) -> None:
        """Give back what `allocate` handed out at `offset`."""
        size = self._taken.pop(offset)
        self.used -= size
        index = bisect.bisect(self._starts, offset)
        if index < len(self._starts) and self._starts[index] == offset + size:
            size += self._sizes.pop(index)
            del self._starts[index]
        if index and self._starts[index - 1] + self._sizes[index - 1] == offset:
            self._sizes[index - 1] += size
            return
        self._starts.insert(index, offset)
        self._sizes.insert(index, size)
