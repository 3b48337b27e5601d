"""Time of switches: of the device where it runs them later than the call."""

from __future__ import annotations

import pytest
import torch
from bmt_server.worker.live_weights import LiveWeights
from bmt_server.worker.switch_timer import EventTimer, HostTimer, make_timer

from tests.support.worker import gates


class Device:
    """A stream that runs work when `advance` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue: list = []

    def event(self):
        return Event(self)

    def advance(self, milliseconds: float) -> None:
        for work in self.queue:
            self.now += milliseconds if work is None else 0.0
            if work is not None:
                work.at = self.now
        self.queue.clear()


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, None

    def record(self) -> None:
        self.device.queue.append(self)

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


@pytest.mark.found
def test_an_enqueued_switch_counts_when_the_device_has_run_it():
    """The call returns at once, and the device takes 5 ms for it, later."""
    device = Device()
    timer = EventTimer(device.event)
    weights = LiveWeights(gates(1), lambda old, new: device.queue.append(None), timer)
    for number in range(1, 4):
        weights.switch(mask(number))
        assert weights.seconds == pytest.approx((number - 1) * 0.005)
        device.advance(5.0)
        assert weights.seconds == pytest.approx(number * 0.005)
    assert weights.switches == 3


def mask(number: int):
    class Mask:
        digest = f"{number}"

    return Mask()


def test_the_timer_follows_the_device():
    assert isinstance(make_timer(torch.device("cpu")), HostTimer)
    assert isinstance(make_timer(torch.device("cuda")), EventTimer)
    timer = HostTimer()
    with timer.measure():
        sum(range(1000))
    assert 0 < timer.seconds < 1
