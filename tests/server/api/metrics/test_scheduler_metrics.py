"""Metrics of the scheduler on /metrics."""

import os
import time

from bmt_server.api.metrics.collectors import StatsCollectors
from bmt_server.ipc.stats_files import StatsWriter, TurnStats
from prometheus_client import CollectorRegistry, generate_latest


def test_a_schedulers_statistics_become_metrics(tmp_path):
    figures = TurnStats(pid=os.getpid(), engine=1, max_wait_s=0.5, turns=2)
    figures.waited(0.03)
    figures.waited(40.0)
    figures.write(tmp_path, 1)
    registry = CollectorRegistry()
    collectors = StatsCollectors(registry, str(tmp_path), list)
    text = generate_latest(registry).decode()
    assert 'bmt_scatter_turns_total{engine="1"} 2.0' in text
    assert 'bmt_scatter_longest_wait_seconds{engine="1"} 40.0' in text
    assert 'bmt_scatter_waits_over_bound_total{engine="1"} 1.0' in text
    assert 'bmt_scatter_wait_seconds_bucket{engine="1",le="0.025"} 0.0' in text
    assert 'bmt_scatter_wait_seconds_bucket{engine="1",le="0.05"} 1.0' in text
    assert 'bmt_scatter_wait_seconds_bucket{engine="1",le="+Inf"} 2.0' in text
    assert 'bmt_scatter_wait_seconds_count{engine="1"} 2.0' in text
    collectors.close()


def test_other_modes_have_no_scheduler_metrics(tmp_path):
    registry = CollectorRegistry()
    StatsCollectors(registry, str(tmp_path), list)
    assert "bmt_scatter" not in generate_latest(registry).decode()


def test_statistics_are_written_when_they_change(tmp_path):
    figures = TurnStats(pid=7)
    writer = StatsWriter(tmp_path, 7, lambda: figures)

    def soon(turns: int) -> bool:
        for _ in range(100):
            if any(f.turns == turns for f in TurnStats.read_all(tmp_path)):
                return True
            time.sleep(0.02)
        return False

    assert soon(0)
    figures.turns = 3
    writer.changed()
    assert soon(3)
    (tmp_path / "turns-8.json").write_text("{")
    assert len(TurnStats.read_all(tmp_path)) == 1, "half a file is passed over"
