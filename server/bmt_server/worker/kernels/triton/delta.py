"""The masked delta on a GPU: y[t, :R] -= x[t] (W ⊙ 1[P(t)])^T for every token's own mask.

P(t) are the zeros of token t's mask. Legend as in `gate_layers.py`; comments give each tensor's
shape. Products and sums are float32, and y is rounded once. Rows without zeros and tokens of the
base are neither read nor written.

`correct` serves tokens one by one: it gathers x one element at a time, and one row of x lies in
many lines of the cache. `correct_tiles` serves tiles, groups of tokens with one mask (`tiles.py`):
a tile's x is copied first with its tokens side by side, so one zero loads a line of tokens, and
reads its column and value once for all of them. Each sums a row's zeros in an order that does not
depend on the batch; the two orders differ, so a token's float32 sum may differ in its last bits
between a step in which it is in a tile and one in which it is not.

CUDA graphs record both. The number of tiles is read from memory, and a fixed number of programs
share them, so a launch without tiles costs its start alone.
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
TILE_ROWS = 64  # gate rows that a program of `correct_tiles` processes at once
TILE_WARPS = 4
# Chosen by arithmetic and by the compiled code, not measured; the benchmark's sweep tries others.
TILE_PROGRAMS = 1056  # most programs of `correct_tiles`: 8 for each multiprocessor of an H100
TILE_ZEROS = 4  # zeros of a row in flight at once in `correct_tiles`
COPY_PROGRAMS = 264  # least number of programs that copy x into tiles
COPY_COLUMNS = 64  # columns of x that such a program copies at once


def stage(tokens: int, columns: int) -> int:
    """STAGE argument of `correct` for x [tokens, columns]: columns in shared memory, 0: none."""
    fits = tokens <= STAGE_TOKENS and columns <= STAGE_COLUMNS
    return triton.next_power_of_2(columns) if fits else 0


@triton.jit
def _live(tiles, first, AT_ONCE: tl.constexpr):
    """Tiles of this launch: from `first` on, at most AT_ONCE, those that the step has."""
    return tl.minimum(tl.load(tiles).to(tl.int32) - first, AT_ONCE)


@triton.jit
def _record(tiles, tile, TILE: tl.constexpr):
    """Pointer to the record of a tile, see `tiles.py`."""
    return tiles + 1 + tile * (1 + TILE // 2)


@triton.jit
def _tokens(record, TILE: tl.constexpr):
    """[TILE] int64 indices of a tile's tokens, -1 for empty slots."""
    indices = (record + 1).to(tl.pointer_type(tl.int32))
    return tl.load(indices + tl.arange(0, TILE)).to(tl.int64)


@triton.jit(do_not_specialize=["layer", "blocks", "tokens", "first"])
def correct(
    y,
    x,
    token_mask,
    tiles,
    copied,
    layer,
    blocks,
    tokens,
    first,
    R,
    y_stride,
    x_stride,
    K,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGE: tl.constexpr,
    TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Semantics: y[t, i] -= sum over zeros (i, j) of mask(t) of x[t, j] * W[i, j], i < R, for t <
    tokens; copied[n, k, j] = x[token j of tile first + n, k], 0 for an empty slot, if TILE > 0.

    y [T, N], x [T, K] in the model's dtype; token_mask int64 [T or more], addresses, 0 = base or a
    token of a tile; tiles: see `tiles.py`; copied [AT_ONCE, K, TILE]. WIDE: cols are int32 (K >
    65,536); STAGE: see `stage`. Programs: (token, `blocks` blocks of ROWS rows); with many tokens a
    program processes several blocks, because programs of base tokens also cost their launch. On
    axis 0 from `tokens` on they copy tiles instead: both belong to one launch, for neither reads
    what the other writes.
    """
    if tl.program_id(0) < tokens:
        t = tl.program_id(0).to(tl.int64)
        mask = tl.load(token_mask + t)
        if mask != 0:
            entry = entry_of(mask, layer)
            cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
            values = tl.load(entry + 3).to(tl.pointer_type(y.dtype.element_ty))
            if STAGE > 0:
                j = tl.arange(0, STAGE)
                line = tl.load(x + t * x_stride + j, mask=j < K, other=0.0)  # [STAGE]
            begin = tl.program_id(1) * blocks * ROWS
            for block in range(begin, min(begin + blocks * ROWS, R), ROWS):
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
    elif TILE > 0:
        parts = tl.cdiv(K, COLUMNS)
        me = (tl.program_id(0) - tokens) * tl.num_programs(1) + tl.program_id(1)
        programs = (tl.num_programs(0) - tokens) * tl.num_programs(1)
        for item in range(me, _live(tiles, first, AT_ONCE) * parts, programs):
            t = _tokens(_record(tiles, first + item // parts, TILE), TILE)
            k = (item % parts) * COLUMNS + tl.arange(0, COLUMNS)
            real = (t >= 0)[:, None] & (k < K)[None, :]
            part = tl.load(x + t[:, None] * x_stride + k[None, :], mask=real, other=0.0)
            out = copied + (item // parts) * K * TILE
            j = tl.arange(0, TILE)
            tl.store(out + k[:, None] * TILE + j[None, :], tl.trans(part), mask=(k < K)[:, None])


@triton.jit(do_not_specialize=["layer", "first"])
def correct_tiles(
    y,
    tiles,
    copied,
    layer,
    first,
    R,
    y_stride,
    K,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    ZEROS: tl.constexpr,
    TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Semantics: as `correct`, for the tokens of tiles first to first + AT_ONCE - 1.

    y [T, N]; copied [AT_ONCE, K, TILE] from `correct`; tiles: see `tiles.py`. A tile's rows are
    written even if they have no zeros, with the bits that they have. Programs: (block of ROWS rows,
    any number); on axis 1 they share the tiles.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    j = tl.arange(0, TILE)
    for tile in range(tl.program_id(1), _live(tiles, first, AT_ONCE), tl.num_programs(1)):
        record = _record(tiles, first + tile, TILE)
        entry = entry_of(tl.load(record), layer)
        start, stop = row_spans(entry, rows, rows < R)
        cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
        values = tl.load(entry + 3).to(tl.pointer_type(y.dtype.element_ty))
        part = copied + tile * K * TILE  # 32 bits: at most 2,048 tokens of K columns
        total = tl.zeros([TILE, ROWS], tl.float32)
        for at in range(0, tl.max(stop - start), ZEROS):
            for ahead in tl.static_range(ZEROS):
                zero = start + at + ahead
                real = zero < stop
                col = tl.load(cols + zero, mask=real, other=0).to(tl.int32)
                weight = tl.load(values + zero, mask=real, other=0.0).to(tl.float32)
                # Unmasked: the weight of a slot beyond its row is 0, and column 0 always exists.
                a = tl.load(part + col[None, :] * TILE + j[:, None])
                total += weight[None, :] * a.to(tl.float32)
        t = _tokens(record, TILE)
        target = y + t[:, None] * y_stride + rows[None, :]
        real = (t >= 0)[:, None] & (rows < R)[None, :]
        # Not masked by `stop > start`: the programs would load the spans again, in another layout.
        before = tl.load(target, mask=real, other=0.0).to(tl.float32)
        tl.store(target, (before - total).to(y.dtype.element_ty), mask=real)
