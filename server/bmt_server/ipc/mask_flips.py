"""Flips files: a mask as its difference to the one before, in offline use.

A run that trains a mask changes a few of its positions in each step. The file is a `.bmt` of the
positions that are zero in one of the two masks; its metadata has the digests of both. A worker
applies it to the mask that it has, and compares the digest of what comes out.
"""

from __future__ import annotations

from pathlib import Path

import bmt_core
from bmt_core import Mask, TensorMask

from bmt_server.ipc.mask_layout import Layout, LayoutError, Rows

SUFFIX = ".flips"


def write_flips(before: Mask, after: Mask, path: Path) -> int:
    """Write the difference of two masks of one base. Returns its bytes. Raises OSError."""
    digests = {"before": before.digest, "after": after.digest}
    data = bmt_core.encode(bmt_core.symmetric_difference(before, after, digests))
    path.write_bytes(data)
    return len(data)


def flipped(before: Layout, path: str | Path) -> Layout:
    """The mask of a flips file, in memory.

    Raises LayoutError if `before` is not the mask that the flips are of.
    """
    try:
        flips = bmt_core.decode(Path(path).read_bytes())
    except (OSError, bmt_core.BmtError) as error:
        raise LayoutError(f"flips {path} cannot be read ({error}); push the whole mask") from None
    if flips.metadata.get("before") != before.digest:
        raise LayoutError(
            f"flips {path} are of mask {str(flips.metadata.get('before'))[:12]}, and this worker "
            f"has {before.digest[:12]}; push the whole mask"
        )
    tensors = before.tensors.items()
    had = tuple(TensorMask(name, rows.shape, rows.positions()) for name, rows in tensors)
    after = bmt_core.symmetric_difference(Mask(flips.base, had), flips)
    if after.digest != flips.metadata.get("after"):
        raise LayoutError(f"flips {path} give another mask than they name; push the whole mask")
    return Layout(after.digest, {tensor.name: Rows.of(tensor) for tensor in after.tensors})
