"""Layout of a mask in GPU memory, and the lookup of a row's zeros in a Triton program.

A mask is a directory followed by a copy of its host buffer (`resident_mask.py`). The directory has
one entry per layer of eight int64, of which a program reads five:

    0  address of block_start   1  of row_end   2  of cols   3  of values
    4  1 if row_end is int32 (a block has more than 65,535 zeros), 0 if it is uint16

The address of its directory identifies a mask; 0 is the base. Addresses instead of indices: a mask
may have any location, a change of residency renumbers and copies nothing, and a program gets from
its token to its mask with one load.

Legend as in `gate_layers.py`: R gate rows, K columns, n zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.resident_mask import BLOCK_ROWS

ENTRY_WORDS = 8  # int64 per entry, so that an entry is one 64-byte line
_ENTRY = tl.constexpr(ENTRY_WORDS)
_BLOCK = tl.constexpr(BLOCK_ROWS)


@triton.jit
def entry_of(mask, layer):
    """Pointer to the entry of `layer` in the directory at address `mask`, int64."""
    return mask.to(tl.pointer_type(tl.int64)) + layer * _ENTRY


@triton.jit
def row_spans(entry, rows, valid):
    """[rows] first and last + 1 of each row's zeros in cols and values; equal if not `valid`."""
    block_start = tl.load(entry).to(tl.pointer_type(tl.int32))
    row_end = tl.load(entry + 1)
    block = tl.load(block_start + rows // _BLOCK, mask=valid, other=0)
    # A block's first row begins with the block; every other row at the end of the row before it.
    follows = valid & (rows % _BLOCK != 0)
    if tl.load(entry + 4) != 0:
        wide = row_end.to(tl.pointer_type(tl.int32))
        stop = tl.load(wide + rows, mask=valid, other=0)
        start = tl.load(wide + rows - 1, mask=follows, other=0)
    else:
        narrow = row_end.to(tl.pointer_type(tl.uint16))
        stop = tl.load(narrow + rows, mask=valid, other=0).to(tl.int32)
        start = tl.load(narrow + rows - 1, mask=follows, other=0).to(tl.int32)
    return block + start, block + stop
