"""In-place masking on a GPU: one launch writes zeros, or the values, in all gates of a model.

Legend as in `gate_layers.py`. `gates` is int64 [layers, 3]: address of a gate's live weight [R, K],
its R, and its row stride in elements. Weights and values are copied as bits (BITS: 16 or 32 per
element), so restored weights are bit-identical in every dtype. Programs: (layer, block of ROWS
rows); one program owns all weights of a row, so programs never write the same element.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.kernels.triton.mask import entry_of, row_spans

ROWS = 128
WIDTH = 8

_RESTORE = tl.constexpr(0)  # weights <- values
_ZERO = tl.constexpr(1)  # weights <- 0
_READ = tl.constexpr(2)  # values <- weights


@triton.jit
def _visit_zeros(
    mask,
    gates,
    layer,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ACTION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One pass over the zeros of one program's rows."""
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
        target = line[:, None] + tl.load(cols + zero, mask=real, other=0).to(tl.int32)
        if ACTION == _RESTORE:
            tl.store(target, tl.load(values + zero, mask=real), mask=real)
        elif ACTION == _ZERO:
            tl.store(target, tl.zeros([ROWS, WIDTH], DTYPE), mask=real)
        else:
            tl.store(values + zero, tl.load(target, mask=real), mask=real)


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

    old, new: addresses of masks, 0 = the base. One launch is enough because a program does both
    halves for its rows, and the barrier between them orders the two writes to an element that both
    masks zero.
    """
    layer = tl.program_id(0)
    if old != 0:
        _visit_zeros(old, gates, layer, BITS, WIDE, _RESTORE, ROWS, WIDTH)
        tl.debug_barrier()
    if new != 0:
        _visit_zeros(new, gates, layer, BITS, WIDE, _ZERO, ROWS, WIDTH)


@triton.jit(do_not_specialize=["mask"])
def read_values(
    mask: tl.int64,
    gates,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Semantics: values(mask) = W[P(mask)], in all layers."""
    _visit_zeros(mask, gates, tl.program_id(0), BITS, WIDE, _READ, ROWS, WIDTH)
