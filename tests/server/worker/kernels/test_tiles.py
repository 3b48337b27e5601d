"""Tables of tiles: every token once, in a tile of its own mask or alone, within the bound."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.triton import tiles
from hypothesis import given
from hypothesis import strategies as st


def cut(chosen: np.ndarray, size: int) -> tuple[tiles.Tiles, np.ndarray]:
    starts = np.flatnonzero(np.diff(chosen, prepend=-1, append=-1))
    return tiles.cut(starts[:-1], np.diff(starts), chosen[starts[:-1]], size)


def named(cut: tiles.Tiles) -> list[tuple[int, list[int]]]:
    """Each tile's mask and tokens."""
    slots = np.ascontiguousarray(cut.records[:, 1:]).view(np.int32)
    return [
        (int(record[0]), [t for t in row.tolist() if t >= 0])
        for record, row in zip(cut.records, slots, strict=True)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90)), min_size=1, max_size=40),
    st.sampled_from(sorted(tiles.LEAST)),
)
def test_every_token_is_in_one_place(runs, size):
    chosen = np.repeat(*(np.array(column, np.int64) for column in zip(*runs, strict=True)))
    table, alone = cut(chosen, size)
    assert len(table) <= tiles.most_tiles(len(chosen), size)
    seen = np.zeros(len(chosen), np.int64)
    for mask, tokens in named(table):
        assert mask
        assert tiles.LEAST[size] <= len(tokens) <= size
        assert tokens == sorted(tokens)
        assert (chosen[tokens] == mask).all()
        seen[tokens] += 1
    assert ((seen == 1) == ((chosen != 0) & (alone == 0))).all()
    assert (alone[seen == 0] == chosen[seen == 0]).all()
    for mask in set(chosen.tolist()) - {0}:
        # Fewer stay alone than are worth a tile.
        assert (alone == mask).sum() < tiles.LEAST[size]


def test_tokens_of_one_mask_need_not_be_adjacent():
    table, alone = cut(np.arange(256) % 16 + 1, tiles.SMALL)
    assert len(table) == 16
    assert not alone.any()
    assert named(table)[3] == (4, list(range(3, 256, 16)))


def test_an_unchanged_composition_copies_nothing(monkeypatch):
    """The buffers keep their places, and only what changed is copied."""
    torch = pytest.importorskip("torch")
    from bmt_server.worker.kernels.triton import kernel as module

    monkeypatch.setattr(module.TritonKernel, "_warm_up", lambda self: None)
    copies = []
    monkeypatch.setattr(module, "on_host", lambda a, _: copies.append(a) or torch.from_numpy(a))
    monkeypatch.setattr(module, "_address", lambda mask: mask)
    weight = torch.zeros(8, 16)
    kernel = module.TritonKernel(
        [GateLayer("gate", (0, 8), weight, weight)], memory_bytes=64, max_tokens=64, graph_tokens=64
    )
    places = kernel._table.data_ptr(), kernel._token_mask.data_ptr()
    for chosen, copied in (
        ([1] * 32, 1),  # the table
        ([1] * 32, 0),
        ([1] * 32 + [2], 1),  # one token more, alone
        ([2] + [1] * 32, 2),
        ([0] * 20, 2),
        ([0] * 20, 0),
    ):
        copies.clear()
        kernel.plan(np.array(chosen), {1: 100, 2: 200})
        assert len(copies) == copied, chosen
    kernel.plan(np.array([1] * 32), {1: 100, 2: 200})
    copies.clear()
    kernel.idle()
    assert [a.tolist() for a in copies] == [[0]], "a table without tiles is one word"
    assert (kernel._table.data_ptr(), kernel._token_mask.data_ptr()) == places
