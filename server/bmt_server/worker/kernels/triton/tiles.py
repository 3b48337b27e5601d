"""Groups of tokens with one mask: the table that a step's programs read, built on the host.

A tile is up to `size` tokens that use one mask, named by their indices, so they may lie anywhere in
the step. Legend as in `gate_layers.py`: T tokens of the step.

A record of the table, in words of int64: the mask's address, then `size` token indices as int32, -1
for an empty slot. The device's copy starts with one word more, the number of tiles, and then the
records; programs stop at that number, so a recorded launch serves steps with any tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL = 16  # tokens of a tile that decodes: 32 bytes of bf16, one sector
LARGE = 64  # tokens of a tile of a prompt: 128 bytes of bf16, one line
# Least tokens of a tile, by its size; fewer cost less one by one (`correct` in `delta.py`).
LEAST = {SMALL: 4, LARGE: 16}


@dataclass(frozen=True, slots=True)
class Tiles:
    """A step's tiles: size in tokens; records int64 [tiles, words(size)]."""

    size: int
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.records)


# A step without tiles.
NONE = Tiles(SMALL, np.empty((0, 1 + SMALL // 2), np.int64))


def words(size: int) -> int:
    """Words of int64 in one record."""
    return 1 + size // 2


def most_tiles(tokens: int, size: int) -> int:
    """Bound on the tiles of a step of `tokens` tokens: each holds at least LEAST[size]."""
    return tokens // LEAST[size]


def cut(
    starts: np.ndarray, lengths: np.ndarray, masks: np.ndarray, size: int
) -> tuple[Tiles, np.ndarray]:
    """Cut runs of tokens into tiles; return them and the addresses of the other tokens, int64 [T].

    starts, lengths, masks: int64 [runs], which cover the step in order; masks are addresses, 0 =
    the base. A token's address is 0 if it is the base's or lies in a tile. The last tokens of a
    mask that would fill less than LEAST[size] slots of a tile stay outside.
    """
    least = LEAST[size]
    used, mask_of = np.unique(masks, return_inverse=True)
    counts = np.zeros(len(used), np.int64)
    np.add.at(counts, mask_of, lengths)
    rest = counts % size
    tiled = np.where(rest >= least, counts, counts - rest)
    tiled[used == 0] = 0
    if not tiled.any():
        return NONE, np.repeat(masks, lengths)
    alone = np.repeat(masks, lengths)
    # Runs in the order of their masks, so that a mask's tokens are consecutive.
    order = np.argsort(mask_of, kind="stable")
    runs = lengths[order]
    tokens = np.repeat(starts[order] - (np.cumsum(runs) - runs), runs) + np.arange(runs.sum())
    nth = np.arange(tokens.size) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = nth < np.repeat(tiled, counts)
    pieces = -(-tiled // size)
    slots = np.repeat((np.cumsum(pieces) - pieces) * size, counts) + nth
    table = np.full(int(pieces.sum()) * size, -1, np.int32)
    table[slots[inside]] = tokens[inside]
    records = np.empty((int(pieces.sum()), words(size)), np.int64)
    records[:, 0] = np.repeat(used, pieces)
    records[:, 1:] = table.reshape(-1, size).view(np.int64)
    alone[tokens[inside]] = 0
    return Tiles(size, records), alone
