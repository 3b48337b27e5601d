"""The places in the masks' memory: never two in one, none lost, neighbours merged."""

from __future__ import annotations

from bmt_server.worker.first_fit import FirstFit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

CAPACITY = 64 * 40


class Places(RuleBasedStateMachine):
    """FirstFit beside a list of 64-byte cells, each free or owned."""

    def __init__(self) -> None:
        super().__init__()
        self.places = FirstFit(CAPACITY)
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
        offset = self.places.allocate(size)
        # First fit: the lowest stretch that is long enough, and None only where there is none.
        assert offset == (fits[0] * 64 if fits else None)
        if offset is not None:
            self.sizes[offset] = cells
            self.cells[offset // 64 : offset // 64 + cells] = [offset] * cells

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.sizes)))
        cells = self.sizes.pop(offset)
        self.places.free(offset)
        self.cells[offset // 64 : offset // 64 + cells] = [None] * cells

    @invariant()
    def counts(self) -> None:
        assert self.places.used == 64 * sum(self.sizes.values())


TestPlaces = Places.TestCase


@given(st.lists(st.integers(1, 700), max_size=30), st.randoms())
def test_all_is_one_stretch_again_in_whatever_order_it_is_freed(sizes, random):
    places = FirstFit(CAPACITY)
    offsets = [o for o in map(places.allocate, sizes) if o is not None]
    random.shuffle(offsets)
    for offset in offsets:
        places.free(offset)
    assert places.used == 0
    assert places.allocate(CAPACITY) == 0


def test_capacity_is_whole_steps():
    places = FirstFit(130)
    assert places.capacity == 128
    assert places.allocate(129) is None
    assert [places.allocate(1), places.allocate(64), places.allocate(1)] == [0, 64, None]
    assert FirstFit(63).allocate(1) is None
