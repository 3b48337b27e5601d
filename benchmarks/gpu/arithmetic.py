"""The masked delta of one layer by arithmetic: launches, bytes and instructions, without a GPU.

    python -m benchmarks.gpu.arithmetic

Each step is counted twice: every token by itself, as all decoding steps were before tiles, and with
tiles as `TritonKernel.plan` cuts them now. Nothing here is a measurement. For a layer R x K in 16
bits with n zeros a mask, T tokens of which S are corrected by themselves, and G tiles of size s:

    bytes of masks      (S + G) (4 n + 2 R + R / 16)    column and value, row ends, block starts
    bytes of x          S n 32 + G n 2 s + 4 s G K      a sector a zero; a line a zero; the copy
    bytes of y          4 R T                           read and written
    instructions        warps of all blocks of rows x (block + steps x step)

A warp's steps follow the longest row of its block (zeros of a row are Poisson distributed);
instructions a block and a step are counted in the code that Triton compiles for sm_90; those of
the copy, a few percent of a tile's, are left out. The time is
launches x 1.8 us + instructions / (132 x 4 a cycle at 1.755 GHz) / share, where share is how much
of an H100's issue slots the two measured kernels filled (`results/latest/gpu.json`, and
docs/results/log/gpu-kernels.md):
43 % (a prompt's tiles, 45 million instructions by ncu) to 54 % (32 tokens one by one, 8.5 million).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bmt_server.worker.resident_mask import BLOCK_ROWS

from benchmarks.gpu.machine_code import Passes, of_correct, of_tiles
from benchmarks.report.gpu import ratios

ROWS, COLUMNS, SPARSITY = 14336, 4096, 0.002
ISSUE_PER_US = 132 * 4 * 1755
SHARES = (0.43, 0.54)
LAUNCH_US = 1.8  # of a launch without work, by the same measurements
STEPS = [(1, 1), (8, 8), (32, 1), (32, 32), (64, 4), (256, 4), (256, 16), (256, 64), (256, 256)]
STEPS += [(512, 16)]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "latest" / "gpu.json"


@dataclass(frozen=True, slots=True)
class Work:
    """One layer of one step: tokens corrected by themselves, tiles, and what they cost."""

    alone: int
    tiles: int
    launches: int
    bytes: float
    instructions: float

    def microseconds(self, share: float) -> float:
        return self.launches * LAUNCH_US + self.instructions / ISSUE_PER_US / share


@dataclass(frozen=True, slots=True)
class Code:
    """Instructions of the two kernels."""

    correct: Passes
    tiles: Passes


def steps_of(rows: int, width: int) -> float:
    """Mean passes of the inner loop over a block of `rows` rows, `width` zeros of each a pass."""
    rng = np.random.default_rng(0)
    longest = rng.poisson(SPARSITY * COLUMNS, (20_000, rows)).max(1)
    return float(np.ceil(longest / width).mean())


def work(code: Code, tokens: int, masks: int, *, grouped: bool) -> Work:
    """A step of `tokens` tokens, each of `masks` masks in turn."""
    from bmt_server.worker.kernels.triton import delta, tiles

    chosen = np.arange(tokens) % masks + 1
    table, alone = tiles.NONE, chosen
    in_tiles = grouped and tokens >= 16
    if in_tiles:
        table, alone = tiles.cut(np.arange(tokens), np.ones(tokens, np.int64), chosen, tiles.SMALL)
    single, count, n = int((alone != 0).sum()), len(table), ROWS * COLUMNS * SPARSITY
    mask = 4 * n + 2 * ROWS + 4 * ROWS / BLOCK_ROWS
    x = single * n * 32 + count * (2 * n + 4 * COLUMNS) * tiles.SMALL
    blocks = -(-ROWS // delta.ROWS) * delta.WARPS
    tile_blocks = -(-ROWS // delta.TILE_ROWS) * delta.TILE_WARPS
    instructions = single * blocks * code.correct.warp(steps_of(delta.ROWS, delta.WIDTH))
    instructions += (
        count * tile_blocks * code.tiles.warp(steps_of(delta.TILE_ROWS, delta.TILE_ZEROS))
    )
    total = (single + count) * mask + x + 4 * ROWS * tokens
    return Work(single, count, 2 if in_tiles else 1, total, instructions)


def table(code: Code) -> str:
    head = ("tokens", "masks", "alone", "tiles", "launches", "MB", "million instr.", "us a layer")
    lines = [_row(head), _row(["---"] * len(head))]
    for tokens, masks in STEPS:
        for grouped in (False, True):
            w = work(code, tokens, masks, grouped=grouped)
            low, high = (w.microseconds(share) for share in reversed(SHARES))
            label = f"{tokens}" if not grouped else ""
            cells = (label, masks if not grouped else "", w.alone, w.tiles, w.launches)
            spent = (
                f"{w.bytes / 1e6:.1f}",
                f"{w.instructions / 1e6:.1f}",
                f"{low:.0f} to {high:.0f}",
            )
            lines.append(_row((*cells, *spent)))
    return "\n".join(lines)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def main() -> int:
    print("By arithmetic, not measured: one layer of 14336 x 4096, bf16, 0.2 % zeros, H100.")
    print("Of each two lines the first has every token by itself, the second tiles.\n")
    print(table(Code(of_correct(), of_tiles(16))))
    print("\nSpeed beside bare vLLM by the measured kernels (a mask each, tokens one by one):")
    print(", ".join(f"{tokens} tokens {ratio:.2f}" for tokens, ratio in ratios(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
