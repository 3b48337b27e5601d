"""Figures of workers on /metrics."""

from bmt_server import stats_file, worker_stats
from bmt_server.api.metrics import Metrics
from bmt_server.worker_stats import WorkerStats
from prometheus_client import CollectorRegistry, generate_latest


def text(folder, stats: WorkerStats) -> str:
    stats_file.write(worker_stats.path_of(folder, 1), stats)
    registry = CollectorRegistry()
    Metrics(str(folder), 10, registry)
    return generate_latest(registry).decode()


def test_auto_tells_what_the_weights_hold_and_why(tmp_path):
    stats = WorkerStats(
        mode="auto",
        steps_corrected=7,
        steps_paying=5,
        switches=2,
        reason="paying",
        switch_paid=0.25,
    )
    told = text(tmp_path, stats)
    assert 'bmt_weights_masked{rank="0"} 0.0' in told
    assert 'bmt_auto_reason{rank="0",reason="paying"} 1.0' in told
    assert 'bmt_auto_reason{rank="0",reason="in_place"} 0.0' in told
    assert 'bmt_auto_switch_paid{rank="0"} 0.25' in told
    assert 'bmt_auto_paying_steps_total{rank="0"} 5.0' in told
    assert 'bmt_switches_total{rank="0"} 2.0' in told
    stats.in_weights = "3f9c0a1b2c3d"
    assert 'bmt_weights_masked{rank="0"} 1.0' in text(tmp_path, stats)


def test_other_modes_have_no_reasons(tmp_path):
    assert "bmt_auto" not in text(tmp_path, WorkerStats(mode="delta"))
