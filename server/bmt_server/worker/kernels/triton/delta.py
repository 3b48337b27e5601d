"""The masked delta on a GPU: y[t, :R] -= x[t] (W ⊙ [P(t)])ᵀ for every token's own mask.

Legend as in `layers.py`; shapes are given where a tensor is born. Products and sums are float32,
and y is rounded once. A row's zeros are summed in an order that does not depend on the batch, so
a mask answers the same alone and among others. Rows without zeros and tokens of the base are
neither read nor written.

`correct` serves every step and is what CUDA graphs record. `correct_tiles` is for long runs of
tokens with one mask (prefill), where `correct` would fetch every zero again for each token and
gather x one element at a time: here a tile's x lies turned, tokens side by side, so that one zero
loads a line of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.kernels.triton.mask import entry_of, row_spans

# The best of those that `benchmarks/gpu.py --sweep` tried on an H100, see docs/log.md.
ROWS = 128  # gate rows that a program of `correct` takes at once
WARPS = 4  # a thread a row
WIDTH = 8  # zeros of a row in flight at once; 0.2 % of 4,096 columns is 8 on average
PROGRAMS = 1024  # of `correct` at least, where a step has so many blocks of rows: they fill a GPU
STAGE_TOKENS = 4  # of a step up to which x is kept in shared memory: shorter to wait for
STAGE_MOST = 16384  # columns of x up to which it fits there
TILE = 64  # tokens of a tile: one 128-byte line of bf16
TILE_ROWS = 64  # gate rows of one program of `correct_tiles`
TILE_WARPS = 4
TURN = 64  # columns of x that one program turns


def stage(tokens: int, columns: int) -> int:
    """`correct`'s STAGE for x [tokens, columns]: columns in shared memory, or 0 for none."""
    fits = tokens <= STAGE_TOKENS and columns <= STAGE_MOST
    return triton.next_power_of_2(columns) if fits else 0


@triton.jit(do_not_specialize=["layer", "blocks"])
def correct(
    y,
    x,
    token_mask,
    layer,
    blocks,
    R,
    y_stride,
    x_stride,
    K,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGE: tl.constexpr,
):
    """Semantics: y[t, i] -= sum over zeros (i, j) of mask(t) of x[t, j] * W[i, j], i < R.

    y [T, N], x [T, K] in the model's dtype; token_mask int64 [T or more], addresses, 0 = base.
    WIDE: cols are int32 (K > 65,536); STAGE: see `stage`. Programs: (token, `blocks` blocks of
    ROWS rows); with many tokens a program takes several, for those that end at once cost their
    start all the same.
    """
    t = tl.program_id(0).to(tl.int64)
    mask = tl.load(token_mask + t)
    if mask != 0:
        entry = entry_of(mask, layer)
        cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
        values = tl.load(entry + 3).to(tl.pointer_type(y.dtype.element_ty))
        if STAGE > 0:
            j = tl.arange(0, STAGE)
            line = tl.load(x + t * x_stride + j, mask=j < K, other=0.0)  # [STAGE]
        first = tl.program_id(1) * blocks * ROWS
        for block in range(first, min(first + blocks * ROWS, R), ROWS):
            rows = block + tl.arange(0, ROWS)  # [ROWS]
            start, stop = row_spans(entry, rows, rows < R)
            total = tl.zeros([ROWS], tl.float32)
            for at in range(0, tl.max(stop - start), WIDTH):
                zero = (start + at)[:, None] + tl.arange(0, WIDTH)[None, :]  # [ROWS, WIDTH]
                real = zero < stop[:, None]
                col = tl.load(cols + zero, mask=real, other=0).to(tl.int32)
                weight = tl.load(values + zero, mask=real, other=0.0).to(tl.float32)
                if STAGE > 0:
                    flat = tl.gather(line, tl.reshape(col, [ROWS * WIDTH]), axis=0)
                    a = tl.reshape(flat, [ROWS, WIDTH]).to(tl.float32)
                else:
                    a = tl.load(x + t * x_stride + col, mask=real, other=0.0).to(tl.float32)
                total += tl.sum(weight * a, axis=1)
            place = y + t * y_stride + rows
            before = tl.load(place, mask=stop > start, other=0.0).to(tl.float32)
            tl.store(place, (before - total).to(y.dtype.element_ty), mask=stop > start)


@triton.jit
def turn(x, turned, tile_start, tile_count, K, x_stride, TURN: tl.constexpr, TILE: tl.constexpr):
    """Semantics: turned[i, k, j] = x[tile_start[i] + j, k] for j < tile_count[i], else 0.

    x [T, K]; turned [tiles, K, TILE]; tile_start, tile_count int32 [tiles]. Programs: (tile,
    TURN columns).
    """
    tile = tl.program_id(0)
    start, count = tl.load(tile_start + tile).to(tl.int64), tl.load(tile_count + tile)
    k = tl.program_id(1) * TURN + tl.arange(0, TURN)
    j = tl.arange(0, TILE)
    real = (j < count)[:, None] & (k < K)[None, :]
    part = tl.load(x + (start + j)[:, None] * x_stride + k[None, :], mask=real, other=0.0)
    out = turned + tile.to(tl.int64) * K * TILE + k[:, None] * TILE + j[None, :]  # [TURN, TILE]
    tl.store(out, tl.trans(part), mask=(k < K)[:, None])


@triton.jit(do_not_specialize=["layer"])
def correct_tiles(
    y,
    turned,
    tile_start,
    tile_count,
    tile_mask,
    layer,
    R,
    K,
    y_stride,
    WIDE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Semantics: that of `correct` for the tokens of each tile, all of which use tile_mask[tile].

    y [T, N]; turned [tiles, K, TILE] as `turn` left it; tile_start, tile_count int32 and tile_mask
    int64 [tiles]. Programs: (tile, block of TILE_ROWS rows).
    """
    tile = tl.program_id(0)
    entry = entry_of(tl.load(tile_mask + tile), layer)
    first, count = tl.load(tile_start + tile).to(tl.int64), tl.load(tile_count + tile)
    rows = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)  # [TILE_ROWS]
    j = tl.arange(0, TILE)  # [TILE]
    start, stop = row_spans(entry, rows, rows < R)
    cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
    values = tl.load(entry + 3).to(tl.pointer_type(y.dtype.element_ty))
    part = turned + tile.to(tl.int64) * K * TILE
    total = tl.zeros([TILE, TILE_ROWS], tl.float32)
    for at in range(0, tl.max(stop - start)):
        real = start + at < stop
        col = tl.load(cols + start + at, mask=real, other=0).to(tl.int32)
        weight = tl.load(values + start + at, mask=real, other=0.0).to(tl.float32)
        a = tl.load(part + col[None, :] * TILE + j[:, None], mask=real[None, :], other=0.0)
        total += weight[None, :] * a.to(tl.float32)
    place = y + (first + j)[:, None] * y_stride + rows[None, :]
    real = (j < count)[:, None] & (stop > start)[None, :]
    before = tl.load(place, mask=real, other=0.0).to(tl.float32)
    tl.store(place, (before - total).to(y.dtype.element_ty), mask=real)
