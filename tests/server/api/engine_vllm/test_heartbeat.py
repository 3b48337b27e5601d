"""Engine heartbeat, on a fake clock."""

from __future__ import annotations

from bmt_server.api.engine_vllm.heartbeat import Heartbeat


def test_only_an_engine_with_work_can_be_silent():
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    now[0] = 100.0
    assert heartbeat.silent_s() == 0
    with heartbeat.track_call():
        assert heartbeat.silent_s() == 0  # idle until now
        now[0] += 7
        assert heartbeat.silent_s() == 7
        with heartbeat.track_call():
            assert heartbeat.silent_s() == 7  # another request is no heartbeat
            heartbeat.beat()
            now[0] += 2
        assert heartbeat.silent_s() == 2
    assert heartbeat.silent_s() == 0
