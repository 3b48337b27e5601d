"""In-place masking on a GPU: one launch puts zeros into, or values back to, all gates of a model.

Legend as in `layers.py`. `gates` is int64 [layers, 3]: address of a gate's live weight [R, K],
its R and the elements from one row to the next. Weights and values move as bits (BITS: 16 or 32 an
element), so that what comes back is what was there, in every dtype. Programs: (layer, block of
ROWS rows); a row's weights belong to one program, so programs never meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.kernels.triton.mask import entry_of, row_spans

ROWS = 128
WIDTH = 8

_PUT = tl.constexpr(0)  # weights <- values
_ZERO = tl.constexpr(1)  # weights <- 0
_TAKE = tl.constexpr(2)  # values <- weights


@triton.jit
def _visit(
    mask,
    gates,
    layer,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    WHAT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program's part of one pass over a mask's zeros."""
    DTYPE: tl.constexpr = tl.uint16 if BITS == 16 else tl.uint32
    weight = tl.load(gates + layer * 3).to(tl.pointer_type(DTYPE))
    R, stride = tl.load(gates + layer * 3 + 1), tl.load(gates + layer * 3 + 2)
    entry = entry_of(mask, layer)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    start, stop = row_spans(entry, rows, rows < R)
    cols = tl.load(entry + 2).to(tl.pointer_type(tl.int32 if WIDE else tl.uint16))
    values = tl.load(entry + 3).to(tl.pointer_type(DTYPE))
    line = weight + rows.to(tl.int64) * stride
    for at in range(0, tl.max(stop - start), WIDTH):
        zero = (start + at)[:, None] + tl.arange(0, WIDTH)[None, :]  # [ROWS, WIDTH]
        real = zero < stop[:, None]
        place = line[:, None] + tl.load(cols + zero, mask=real, other=0).to(tl.int32)
        if WHAT == _PUT:
            tl.store(place, tl.load(values + zero, mask=real), mask=real)
        elif WHAT == _ZERO:
            tl.store(place, tl.zeros([ROWS, WIDTH], DTYPE), mask=real)
        else:
            tl.store(values + zero, tl.load(place, mask=real), mask=real)


@triton.jit(do_not_specialize=["old", "new"])
def switch(
    old: tl.int64,
    new: tl.int64,
    gates,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Semantics: W[P(old)] = values(old), then W[P(new)] = 0, in all layers.

    old, new: addresses of masks, 0 = the base. One pass is sound because a program does both
    halves of its rows, and the barrier between them orders the two writes of a place that both
    masks delete.
    """
    layer = tl.program_id(0)
    if old != 0:
        _visit(old, gates, layer, BITS, WIDE, _PUT, ROWS, WIDTH)
        tl.debug_barrier()
    if new != 0:
        _visit(new, gates, layer, BITS, WIDE, _ZERO, ROWS, WIDTH)


@triton.jit(do_not_specialize=["mask"])
def take(
    mask: tl.int64,
    gates,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Semantics: values(mask) = W[P(mask)], in all layers."""
    _visit(mask, gates, tl.program_id(0), BITS, WIDE, _TAKE, ROWS, WIDTH)
