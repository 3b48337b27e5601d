"""The masked delta on a GPU: y[t, :R] -= x[t] (W ⊙ 1[P(t)])^T for every token's own mask.

P(t) are the zeros of token t's mask. Legend as in `gate_layers.py`; comments give each tensor's
shape. Products and sums are float32, and y is rounded once. The order in which a row's zeros are
summed does not depend on the batch, so a token's result is the same in every batch. Rows without
zeros and tokens of the base are neither read nor written.

`correct` serves every step and is the kernel that CUDA graphs record. `correct_tiles` is for long
runs of tokens with one mask (prefill), for which `correct` would read every zero again for each
token and gather x one element at a time: a tile's x is transposed, with tokens contiguous, so one
zero loads a line of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.kernels.triton.mask import entry_of, row_spans

# The fastest of the sizes that the GPU benchmark's sweep measured on an H100.
ROWS = 128  # gate rows that a program of `correct` processes at once
WARPS = 4  # one thread per row
WIDTH = 8  # zeros of a row in flight at once; 0.2 % of 4,096 columns is 8 on average
PROGRAMS = 1024  # least number of programs of `correct`, if a step has as many blocks of rows
STAGE_TOKENS = 4  # most tokens of a step with x in shared memory, which has a lower latency
STAGE_COLUMNS = 16384  # most columns of x that fit there
TILE = 64  # tokens per tile: one 128-byte line of bf16
TILE_ROWS = 64  # gate rows per program of `correct_tiles`
TILE_WARPS = 4
TRANSPOSE_COLUMNS = 64  # columns of x per program of `transpose`


def stage(tokens: int, columns: int) -> int:
    """STAGE argument of `correct` for x [tokens, columns]: columns in shared memory, 0: none."""
    fits = tokens <= STAGE_TOKENS and columns <= STAGE_COLUMNS
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
    ROWS rows); with many tokens a program processes several blocks, because programs of base tokens
    also cost their launch.
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
            target = y + t * y_stride + rows
            before = tl.load(target, mask=stop > start, other=0.0).to(tl.float32)
            tl.store(target, (before - total).to(y.dtype.element_ty), mask=stop > start)


@triton.jit
def transpose(
    x,
    transposed,
    tile_start,
    tile_count,
    K,
    x_stride,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Semantics: transposed[i, k, j] = x[tile_start[i] + j, k] for j < tile_count[i], else 0.

    x [T, K]; transposed [tiles, K, TILE]; tile_start, tile_count int32 [tiles]. Programs: (tile,
    COLUMNS columns).
    """
    tile = tl.program_id(0)
    start, count = tl.load(tile_start + tile).to(tl.int64), tl.load(tile_count + tile)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    j = tl.arange(0, TILE)
    real = (j < count)[:, None] & (k < K)[None, :]
    part = tl.load(x + (start + j)[:, None] * x_stride + k[None, :], mask=real, other=0.0)
    out = (
        transposed + tile.to(tl.int64) * K * TILE + k[:, None] * TILE + j[None, :]
    )  # [COLUMNS, TILE]
    tl.store(out, tl.trans(part), mask=(k < K)[:, None])


@triton.jit(do_not_specialize=["layer"])
def correct_tiles(
    y,
    transposed,
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
    """Semantics: as `correct`, for the tokens of each tile, all of which use tile_mask[tile].

    y [T, N]; transposed [tiles, K, TILE] from `transpose`; tile_start, tile_count int32 and
    tile_mask int64 [tiles]. Programs: (tile, block of TILE_ROWS rows).
    """
    tile = tl.program_id(0)
    entry = entry_of(tl.load(tile_mask + tile), layer)
    first, count = tl.load(tile_start + tile).to(tl.int64), tl.load(tile_count + tile)
    rows = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)  # [TILE_ROWS]
    j = tl.arange(0, TILE)  # [TILE]
    start, stop = row_spans(entry, rows, rows < R)
    cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
    values = tl.load(entry + 3).to(tl.pointer_type(y.dtype.element_ty))
    part = transposed + tile.to(tl.int64) * K * TILE
    total = tl.zeros([TILE, TILE_ROWS], tl.float32)
    for at in range(0, tl.max(stop - start)):
        real = start + at < stop
        col = tl.load(cols + start + at, mask=real, other=0).to(tl.int32)
        weight = tl.load(values + start + at, mask=real, other=0.0).to(tl.float32)
        a = tl.load(part + col[None, :] * TILE + j[:, None], mask=real[None, :], other=0.0)
        total += weight[None, :] * a.to(tl.float32)
    target = y + (first + j)[:, None] * y_stride + rows[None, :]
    real = (j < count)[:, None] & (stop > start)[None, :]
    before = tl.load(target, mask=real, other=0.0).to(tl.float32)
    tl.store(target, (before - total).to(y.dtype.element_ty), mask=real)
