"""Files of statistics under writers of several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from bmt_server.ipc.stats_files import StatsWriter, WorkerStats


def test_a_write_at_once_is_the_last_state_in_the_file(tmp_path):
    """Neither it nor the background thread fails, and no older state replaces it later."""
    stats = WorkerStats(pid=1)
    collecting, go_on = threading.Event(), threading.Event()
    background = threading.Event()

    def collect() -> WorkerStats:
        if threading.current_thread().name == "bmt-stats" and not background.is_set():
            background.set()
            before = WorkerStats(pid=1, base_error=stats.base_error)
            collecting.set()
            go_on.wait(10)
            return before
        return stats

    writer = StatsWriter(tmp_path, 1, collect)
    assert collecting.wait(10)
    stats.base_error = "replaced"
    at_once = threading.Thread(target=writer.write)
    at_once.start()
    at_once.join(0.1)
    go_on.set()
    at_once.join(10)
    (found,) = WorkerStats.read_all(tmp_path)
    assert found.base_error == "replaced"


def test_writes_of_several_threads_do_not_fail(tmp_path):
    writer = StatsWriter(tmp_path, 1, lambda: WorkerStats(pid=1))

    def write() -> None:
        for _ in range(200):
            writer.write()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write) for _ in range(3)]:
            done.result()
