"""How a mask lies in GPU memory, and how a Triton program finds its rows' zeros.

A mask is its host buffer (`resident.py`) copied as it is, with a directory before it: one entry a
layer of eight int64, of which a program reads five:

    0  address of block_start   1  of row_end   2  of cols   3  of values
    4  1 where row_end is int32 (a block of more than 65,535 zeros), else 0: it is uint16

A mask is known by its directory's address; 0 is the base. Addresses instead of slots: a mask may
lie anywhere, nothing has to be renumbered or copied when residency changes, and a program needs
one load to get from its token to its mask.

Legend as in `layers.py`: R gate rows, K columns, n zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bmt_server.worker.resident_mask import BLOCK_ROWS

ENTRY_WORDS = 8  # int64 in a directory's entry, so that an entry is one 64-byte line
_ENTRY = tl.constexpr(ENTRY_WORDS)
_BLOCK = tl.constexpr(BLOCK_ROWS)


@triton.jit
def entry_of(mask, layer):
    """Pointer to layer `layer`'s entry in the directory at address `mask`, int64."""
    return mask.to(tl.pointer_type(tl.int64)) + layer * _ENTRY


@triton.jit
def row_spans(entry, rows, here):
    """[rows] first and last + 1 of each row's zeros in cols and values; equal where not `here`."""
    block_start = tl.load(entry).to(tl.pointer_type(tl.int32))
    row_end = tl.load(entry + 1)
    block = tl.load(block_start + rows // _BLOCK, mask=here, other=0)
    # A block's first row begins with the block; every other row where the row before it ends.
    follows = here & (rows % _BLOCK != 0)
    if tl.load(entry + 4) != 0:
        wide = row_end.to(tl.pointer_type(tl.int32))
        stop = tl.load(wide + rows, mask=here, other=0)
        start = tl.load(wide + rows - 1, mask=follows, other=0)
    else:
        narrow = row_end.to(tl.pointer_type(tl.uint16))
        stop = tl.load(narrow + rows, mask=here, other=0).to(tl.int32)
        start = tl.load(narrow + rows - 1, mask=follows, other=0).to(tl.int32)
    return block + start, block + stop
