"""A folder of statistics is removed while the processes that write there are still ending."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path

from bmt_server.ipc import stats_folder
from bmt_server.ipc.stats_files import WorkerStats


def test_a_file_that_comes_during_removal_does_not_stop_it(monkeypatch):
    """As one of a worker that outlives its engine: the first attempt finds the folder in use."""
    rmtree, attempts = shutil.rmtree, []

    def interrupted(path, **options):
        attempts.append(path)
        rmtree(path, **options)
        if len(attempts) < 3:
            Path(path).mkdir()
            WorkerStats(pid=1).write(path, 1)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with stats_folder.stats_folder() as folder:
        WorkerStats(pid=1).write(folder, 1)
    assert len(attempts) == 3
    assert not Path(folder).exists()


def test_writers_that_end_a_moment_later_cost_no_error():
    folder = stats_folder.make()
    end = time.monotonic() + 0.5

    def write(pid):
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                WorkerStats(pid=pid).write(folder, pid)

    threads = [threading.Thread(target=write, args=(pid,)) for pid in range(4)]
    for thread in threads:
        thread.start()
    stats_folder.remove(folder)
    for thread in threads:
        thread.join()
    assert not Path(folder).exists()


def test_a_folder_that_cannot_be_removed_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(stats_folder, "_REMOVE_S", 0.1)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)
    stats_folder.remove(str(tmp_path))
    assert tmp_path.exists()
