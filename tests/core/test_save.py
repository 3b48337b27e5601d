"""Files are written atomically."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import bmt_core
import numpy as np
import pytest

BASE = bmt_core.Base("m", "ab" * 32)
LOOP = """
import sys, itertools, numpy as np, bmt_core
def mask(seed):
    picks = np.unique(np.random.default_rng(seed).integers(0, 1 << 20, 40_000))
    tensor = bmt_core.TensorMask("w", (1 << 10, 1 << 10), picks)
    return bmt_core.Mask(bmt_core.Base("m", "ab" * 32), (tensor,), {"seed": seed})
both = [mask(0), mask(1)]
bmt_core.save(both[0], sys.argv[1], "packbits")
print("ready", flush=True)
for turn in itertools.count(1):
    bmt_core.save(both[turn % 2], sys.argv[1], "packbits")
"""


def mask(*positions: int) -> bmt_core.Mask:
    return bmt_core.Mask(BASE, (bmt_core.TensorMask("w", (4, 10), np.array(positions)),))


def test_a_killed_writer_leaves_a_complete_file(tmp_path):
    path = tmp_path / "m.bmt"
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
        seen.add(bmt_core.load(path).metadata["seed"])
    assert seen <= {0, 1}


def test_the_file_equals_encode_and_its_digest_is_returned(tmp_path):
    path = tmp_path / "m.bmt"
    for one, codec in ((mask(1, 6), "gaps"), (mask(2), "packbits")):
        digest = bmt_core.save(one, path, codec)
        assert path.read_bytes() == bmt_core.encode(one, codec)
        assert digest == bmt_core.file_digest(path.read_bytes())
        assert bmt_core.load(path, expect_base=BASE) == one
    assert os.listdir(tmp_path) == ["m.bmt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        bmt_core.save(mask(1), tmp_path / "m.bmt")
    finally:
        assert os.umask(before) == umask, "saving leaves the process's umask alone"
    assert (tmp_path / "m.bmt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "m.bmt"
    bmt_core.save(mask(1), path)
    with pytest.raises(bmt_core.MaskError):
        bmt_core.save(mask(2), path, "rar")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match="No space"):
                bmt_core.save(mask(2), path)
    assert os.listdir(tmp_path) == ["m.bmt"]
    assert bmt_core.load(path) == mask(1)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        bmt_core.save(mask(1), folder)
    with pytest.raises(FileNotFoundError):
        bmt_core.save(mask(1), tmp_path / "gone" / "m.bmt")
    assert sorted(os.listdir(tmp_path)) == ["folder", "m.bmt"]


def test_relative_and_long_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bmt_core.save(mask(1), "m.bmt")
    long = "m" * 251 + ".bmt"
    bmt_core.save(mask(1), long)
    assert bmt_core.load("m.bmt") == bmt_core.load(long) == mask(1)
    assert sorted(os.listdir(tmp_path)) == sorted(["m.bmt", long])
