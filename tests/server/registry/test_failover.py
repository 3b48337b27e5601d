"""The primary killed under load, behind sentinels and in a cluster: nothing acknowledged is lost.

Its full size: tests/system/registry/test_failover.py.
"""

from __future__ import annotations

import pytest

from tests.support.scenarios.failover import through_failover
from tests.support.scenarios.nodes import cluster, sentinels

CODES = {"registry_unavailable", "not_durable", "registry_busy"}


@pytest.mark.found
@pytest.mark.parametrize("deployment", [sentinels, cluster])
async def test_nothing_acknowledged_is_lost(tmp_path, deployment):
    with deployment(tmp_path / "r") as available:
        found = await through_failover(available, tmp_path / "cache", writers=4, before_s=1)
    assert not found.lost
    assert len(found.acknowledged) > 8
    assert found.served_after_s < 10
    assert {code for _, code in found.refused} <= CODES
