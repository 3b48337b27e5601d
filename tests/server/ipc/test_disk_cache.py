"""Disk cache: size bound, LRU order across restarts, no eviction of files in any process's use."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bmt_server.ipc import disk_cache
from bmt_server.ipc.disk_cache import DiskCache, DiskError, DiskFull
from bmt_server.ipc.mask_layout import map_layout, write_layout

from tests.support.worker import random_mask

MASKS = [random_mask(seed) for seed in range(12)]


def size(folder: Path) -> int:
    return write_layout(MASKS[0], folder / "probe.lay")


@pytest.fixture
def one(tmp_path) -> int:
    """Bytes of one mask's file; all masks here have the same size."""
    return size(tmp_path)


def cache(tmp_path: Path, bound: int) -> DiskCache:
    return DiskCache(tmp_path / "cache", bound)


def there(store: DiskCache) -> set[int]:
    return {i for i, mask in enumerate(MASKS) if store.path(mask.digest).exists()}


def fill(store: DiskCache, *which: int) -> None:
    """Store masks, each with a later time of use than the previous one."""
    for i in which:
        store.store(MASKS[i])
        past = time.time() - 1000 + 10 * i
        os.utime(store.path(MASKS[i].digest), (past, past))


def test_a_stored_mask_is_found_and_intact(tmp_path):
    store = cache(tmp_path, 1 << 20)
    assert not store.hold(MASKS[0].digest)
    store.store(MASKS[0])
    assert store.hold(MASKS[0].digest)
    assert map_layout(store.path(MASKS[0].digest)).digest == MASKS[0].digest


def test_the_least_recently_used_mask_is_evicted_first_across_restarts(tmp_path, one):
    store = cache(tmp_path, 4 * one)
    fill(store, 0, 1, 2, 3)
    store.hold(MASKS[0].digest)
    store.release(MASKS[0].digest)
    store.close()
    again = cache(tmp_path, 4 * one)
    again.store(MASKS[4])
    assert again.needs_trim
    again.trim()
    # Down to nine tenths of the bound, so that the next mask needs no trim.
    assert there(again) == {0, 3, 4}
    assert again.nbytes <= 4 * one
    assert again.evictions == 2


def test_held_masks_stay_beyond_the_bound(tmp_path, one):
    store = cache(tmp_path, 2 * one)
    for i in range(5):
        store.hold(MASKS[i].digest)
        store.store(MASKS[i])
    store.trim()
    assert there(store) == {0, 1, 2, 3, 4}
    for i in range(5):
        store.release(MASKS[i].digest)
        # The clock of file times ticks every few milliseconds, so set the order explicitly.
        used = time.time() - 10 + i
        os.utime(store.path(MASKS[i].digest), (used, used))
    store.trim()
    assert there(store) == {4}


@pytest.mark.found
def test_uploads_that_arrive_are_within_the_bound(tmp_path, one):
    store = cache(tmp_path, 4 * one)
    fill(store, 0, 1, 2)
    store.trim()
    with store.uploads() as added:
        added(one // 2)
        store.trim()
        assert there(store) == {0, 1, 2}
        added(2 * one)
        assert store.needs_trim
        store.trim()
        assert there(store) == {2}
    fill(store, 3, 4)
    store.trim()
    assert there(store) == {2, 3, 4}


def test_holds_are_counted(tmp_path, one):
    store = cache(tmp_path, one)
    fill(store, 0)
    for _ in range(2):
        store.hold(MASKS[0].digest)
    store.release(MASKS[0].digest)
    fill(store, 1)
    store.trim()
    assert 0 in there(store)


HOLDER = """
import sys
from pathlib import Path
from bmt_server.ipc.disk_cache import DiskCache
store = DiskCache(Path(sys.argv[1]), 1 << 40)
for digest in sys.argv[2:]:
    assert store.hold(digest)
print("held", flush=True)
sys.stdin.read()
"""


def test_masks_held_by_another_process_stay_until_it_ends(tmp_path, one):
    store = cache(tmp_path, one)
    fill(store, 0, 1, 2)
    command = [sys.executable, "-c", HOLDER, str(store.folder), MASKS[0].digest, MASKS[1].digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        fill(store, 3)
        store.trim()
        assert there(store) == {0, 1}
        other.kill()
        other.wait()
    store.trim()
    assert there(store) == set()


WRITER = """
import sys
from pathlib import Path
from bmt_server.ipc.disk_cache import DiskCache
from tests.support.worker import random_mask
MASKS = [random_mask(seed) for seed in range(12)]
store = DiskCache(Path(sys.argv[1]), int(sys.argv[2]))
for round in range(30):
    for mask in MASKS[int(sys.argv[3])::3]:
        there = store.hold(mask.digest)
        if not there:
            store.store(mask)
        # Held, so it must exist now, whatever the other processes evict.
        assert store.path(mask.digest).exists(), mask.digest
        store.release(mask.digest)
        if store.needs_trim:
            store.trim()
"""


def test_several_processes_share_a_folder(tmp_path, one):
    folder = tmp_path / "cache"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(4 * one), str(i)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    store = DiskCache(folder, 4 * one)
    store.trim()
    assert store.nbytes <= 4 * one
    for i in there(store):
        assert map_layout(store.path(MASKS[i].digest)).digest == MASKS[i].digest


def test_files_of_crashed_writers_are_deleted(tmp_path):
    store = cache(tmp_path, 1 << 20)
    left, young, foreign = (store.folder / n for n in (".lay-old", ".lay-new", "README"))
    for path in (left, young, foreign):
        path.write_bytes(b"half a mask")
    os.utime(left, (time.time() - 3600,) * 2)
    store.trim()
    assert not left.exists()
    assert young.exists(), "another process may be writing it"
    assert foreign.exists()


def test_a_full_disk_evicts_and_retries(tmp_path, one, monkeypatch):
    store = cache(tmp_path, 100 * one)
    fill(store, 0, 1, 2)
    failures = [OSError(errno.ENOSPC, "No space left on device")]

    def full_once(mask, path):
        if failures:
            raise failures.pop()
        return write_layout(mask, path)

    monkeypatch.setattr(disk_cache, "write_layout", full_once)
    store.store(MASKS[3])
    assert 3 in there(store)
    assert 0 not in there(store)


def test_a_disk_that_stays_full_is_a_typed_error_and_leaves_nothing_behind(tmp_path):
    """A limit on the file size makes a real write fail halfway, as a full disk does."""
    code = (
        "import resource, sys, signal\n"
        "from pathlib import Path\n"
        "from bmt_server.ipc.disk_cache import DiskCache, DiskFull\n"
        "from tests.support.worker import random_mask\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = DiskCache(Path(sys.argv[1]), 1 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    store.store(random_mask(0))\n"
        "except DiskFull as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "no room on the disk" in done.stdout
    assert "--data-dir" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"lock"}


def test_an_unwritable_folder_is_a_typed_error(tmp_path, monkeypatch):
    store = cache(tmp_path, 1 << 20)

    def refused(mask, path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(disk_cache, "write_layout", refused)
    with pytest.raises(DiskError, match="Permission denied") as caught:
        store.store(MASKS[0])
    assert not isinstance(caught.value, DiskFull)


def test_only_one_of_two_processes_creates_a_file(tmp_path):
    store = cache(tmp_path, 1 << 20)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bmt_server.ipc.disk_cache import DiskCache\n"
        "store = DiskCache(Path(sys.argv[1]), 1 << 20)\n"
        "with store.write_lock(sys.argv[2], 10):\n"
        "    print('making', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    Path(sys.argv[3]).touch()\n"
    )
    made = tmp_path / "made"
    command = [sys.executable, "-c", code, str(store.folder), MASKS[0].digest, str(made)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"making\n"
        let_go = other.stdin.fileno()
        with store.write_lock(MASKS[1].digest, 10):
            assert not made.exists(), "another mask does not wait"
        threading.Timer(0.3, lambda: os.write(let_go, b"\n")).start()
        with store.write_lock(MASKS[0].digest, 10):
            assert made.exists(), "the same mask waits for the process that creates it"


def test_the_cost_of_a_hold_does_not_grow_with_the_number_of_holds(tmp_path):
    """Only `trim` reads the folder."""
    store = cache(tmp_path, 1 << 40)
    digests = [f"{i:064x}" for i in range(0, 1 << 60, (1 << 60) // 2000)]

    def cost(some):
        start = time.process_time()
        for digest in some:
            store.hold(digest)
            store.release(digest)
        return time.process_time() - start

    cost(digests[:100])
    few = cost(digests[:100])
    for digest in digests[200:]:
        store.hold(digest)
    assert cost(digests[:100]) < 10 * few + 0.05
