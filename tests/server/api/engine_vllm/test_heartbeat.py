"""Signs of life of the engine, on a clock of our own."""

from __future__ import annotations

from bmt_server.api.engine_vllm.heartbeat import Pulse


def test_only_an_engine_with_work_can_be_still():
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    now[0] = 100.0
    assert pulse.still_s() == 0
    with pulse.call():
        assert pulse.still_s() == 0  # idle until now
        now[0] += 7
        assert pulse.still_s() == 7
        with pulse.call():
            assert pulse.still_s() == 7  # another request is no sign of life
            pulse.beat()
            now[0] += 2
        assert pulse.still_s() == 2
    assert pulse.still_s() == 0
