"""Failover under load, three times each, with three sentinels and with three shards: nothing that
was acknowledged by `--registry-replicas 1` is lost, and uploads go on soon after the election."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.scenarios.failover import through_failover
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.nodes import cluster, sentinels

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]

ROUNDS = scaled(3)
WRITERS = 8
BEFORE_S = scaled(10, 2)


@pytest.mark.parametrize("deployment", [sentinels, cluster], ids=lambda d: d.__name__)
def test_failover(tmp_path, deployment):
    figures = Figures(f"failover_{deployment.__name__}", "failover")
    found = []
    for i in range(ROUNDS):
        with deployment(tmp_path / str(i)) as available:
            work = through_failover(
                available, tmp_path / f"cache{i}", writers=WRITERS, before_s=BEFORE_S
            )
            found.append(asyncio.run(work))
    count = sum(len(one.acknowledged) for one in found)
    size = f"{ROUNDS} failovers, {WRITERS} writers, {count} acknowledged"
    figures.record("lost", sum(len(one.lost) for one in found), "uploads", "== 0", size=size)
    after = max(one.served_after_s for one in found)
    figures.record("served_after_election", after, "s", "<= 10", size=size)
    figures.record("election", max(one.elected_s for one in found), "s", size=size)
    other = sum(status != 503 for one in found for status, _ in one.refused)
    figures.record("refused_otherwise", other, "uploads", "== 0", size=size)
    figures.end()
