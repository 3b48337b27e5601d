"""First-fit allocator: no overlap, no lost bytes, adjacent free ranges merged."""

from __future__ import annotations

from bmt_server.worker.kernels.triton.first_fit import FirstFitAllocator
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

CAPACITY = 64 * 40


class AllocatorModel(RuleBasedStateMachine):
    """FirstFitAllocator against a list of 64-byte cells, each free or owned."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = FirstFitAllocator(CAPACITY)
        self.cells: list[int | None] = [None] * (CAPACITY // 64)
        self.sizes: dict[int, int] = {}

    @rule(size=st.integers(0, 64 * 45))
    def allocate(self, size: int) -> None:
        cells = max(-(-size // 64), 1)
        fits = [
            i
            for i in range(len(self.cells) - cells + 1)
            if all(cell is None for cell in self.cells[i : i + cells])
        ]
        offset = self.allocator.allocate(size)
        # First fit: the lowest range that is long enough, and None only if there is none.
        assert offset == (fits[0] * 64 if fits else None)
        if offset is not None:
            self.sizes[offset] = cells
            self.cells[offset // 64 : offset // 64 + cells] = [offset] * cells

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.sizes)))
        cells = self.sizes.pop(offset)
        self.allocator.free(offset)
        self.cells[offset // 64 : offset // 64 + cells] = [None] * cells

    @invariant()
    def counts(self) -> None:
        assert self.allocator.used == 64 * sum(self.sizes.values())


TestAllocator = AllocatorModel.TestCase


@given(st.lists(st.integers(1, 700), max_size=30), st.randoms())
def test_freed_ranges_merge_in_any_order(sizes, random):
    allocator = FirstFitAllocator(CAPACITY)
    offsets = [o for o in map(allocator.allocate, sizes) if o is not None]
    random.shuffle(offsets)
    for offset in offsets:
        allocator.free(offset)
    assert allocator.used == 0
    assert allocator.allocate(CAPACITY) == 0


def test_capacity_is_a_multiple_of_the_alignment():
    allocator = FirstFitAllocator(130)
    assert allocator.capacity == 128
    assert allocator.allocate(129) is None
    assert [allocator.allocate(1), allocator.allocate(64), allocator.allocate(1)] == [0, 64, None]
    assert FirstFitAllocator(63).allocate(1) is None
