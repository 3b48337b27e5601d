"""First-fit allocator of one memory block; merges adjacent free ranges."""

from __future__ import annotations

import bisect


class FirstFitAllocator:
    """Ranges [offset, offset + size) of `capacity` bytes, both multiples of `align` bytes.

    Masks of one model have similar sizes, so a freed range fits the next mask: first fit causes
    little fragmentation, and its lists stay as short as the number of masks.
    """

    def __init__(self, capacity: int, align: int = 64) -> None:
        self.align = align
        self.capacity = capacity // align * align
        self.used = 0  # bytes, each range rounded up to `align`
        # Free ranges by offset; two of them are never adjacent.
        self._starts: list[int] = [0] if self.capacity else []
        self._sizes: list[int] = [self.capacity] if self.capacity else []
        self._taken: dict[int, int] = {}

    def allocate(self, size: int) -> int | None:
        """Return the offset of `size` free bytes, a multiple of `align`; None if no range fits."""
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
        """Free the range that `allocate` returned at `offset`. Raises KeyError for any other."""
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
