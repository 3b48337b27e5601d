"""Flips files: what workers derive is the mask after, or an error."""

from __future__ import annotations

import itertools

import bmt_core
import numpy as np
import pytest
from bmt_core import Base, Mask, TensorMask
from bmt_server.ipc.mask_flips import SUFFIX, flipped, write_flips
from bmt_server.ipc.mask_layout import LayoutError, map_layout, write_layout
from bmt_server.settings import Settings
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher

BASE = Base("model", "ab" * 32)
SHAPES = {"a.gate_proj.weight": (6, 10), "b.gate_proj.weight": (70, 3)}


def mask(seed: int, names=tuple(SHAPES), share=0.3) -> Mask:
    random = np.random.default_rng(seed)
    tensors = [
        TensorMask(name, SHAPES[name], np.flatnonzero(random.random(np.prod(SHAPES[name])) < share))
        for name in names
    ]
    return Mask(BASE, tuple(tensors))


def zeros(layout) -> dict[str, list[int]]:
    """Flat positions of each tensor, by loops over its rows."""
    found = {}
    for name, rows in layout.tensors.items():
        starts, width = rows.row_start.tolist(), rows.shape[1]
        found[name] = [
            row * width + int(column)
            for row in range(rows.shape[0])
            for column in rows.cols[starts[row] : starts[row + 1]]
        ]
    return found


@pytest.mark.parametrize(
    "after",
    [mask(2), mask(1), mask(2, share=0.0), mask(2, ("a.gate_proj.weight", "b.gate_proj.weight"))],
    ids=["another", "the same", "empty", "order"],
)
def test_flips_give_the_mask_after(tmp_path, after):
    before = mask(1)
    write_layout(before, tmp_path / "before.lay")
    write_flips(before, after, tmp_path / "after.flips")
    made = flipped(map_layout(tmp_path / "before.lay"), tmp_path / "after.flips")
    assert made.digest == after.digest
    assert zeros(made) == {t.name: t.positions.tolist() for t in after.tensors}
    # As a file of the whole mask gives it.
    write_layout(after, tmp_path / "after.lay")
    assert zeros(made) == zeros(map_layout(tmp_path / "after.lay"))


def test_few_flips_are_a_small_file(tmp_path):
    shape = (400, 400)
    many = np.flatnonzero(np.random.default_rng(0).random(160_000) < 0.1)
    masks = [Mask(BASE, (TensorMask("t", shape, p),)) for p in (many, many[3:])]
    size = write_flips(*masks, tmp_path / "m.flips")
    assert size < len(bmt_core.encode(masks[1])) / 5


def test_a_worker_follows_a_run(tmp_path):
    """Each push is of the mask before; one that is lost, or comes twice, is an error."""
    settings = Settings(
        model_id="model", model_path="", fingerprint=BASE.fingerprint, gates=SHAPES, cache_dir=""
    )
    worker = MaskFetcher(settings)
    masks = [mask(seed) for seed in range(4)]
    write_layout(masks[0], tmp_path / "0.lay")
    paths = []
    for at, (before, after) in enumerate(itertools.pairwise(masks)):
        paths.append(str(tmp_path / f"{at + 1}{SUFFIX}"))
        write_flips(before, after, tmp_path / f"{at + 1}{SUFFIX}")
    with pytest.raises(LayoutError, match="no mask before"):
        worker.open(paths[0])
    assert worker.open(str(tmp_path / "0.lay")).digest == masks[0].digest
    assert worker.open(paths[0]).digest == masks[1].digest
    for wrong in (paths[0], paths[2]):
        with pytest.raises(LayoutError, match="push the whole mask"):
            worker.open(wrong)
    assert [worker.open(p).digest for p in paths[1:]] == [m.digest for m in masks[2:]]


def test_a_damaged_file_is_an_error(tmp_path):
    before = mask(1)
    write_layout(before, tmp_path / "before.lay")
    path = tmp_path / "m.flips"
    write_flips(before, mask(2), path)
    layout = map_layout(tmp_path / "before.lay")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LayoutError, match="cannot be read"):
        flipped(layout, path)
    with pytest.raises(LayoutError, match="cannot be read"):
        flipped(layout, tmp_path / "absent.flips")
    lying = bmt_core.symmetric_difference(
        before, mask(2), {"before": before.digest, "after": mask(3).digest}
    )
    path.write_bytes(bmt_core.encode(lying))
    with pytest.raises(LayoutError, match="another mask"):
        flipped(layout, path)
