"""The proxies do what the scenarios believe of them."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from tests.support.scenarios.proxy import Balancer, FaultProxy
from tests.support.served import Valkey

pytestmark = pytest.mark.operate


@pytest.fixture
def proxy(valkey):
    made = FaultProxy(valkey.socket)
    yield made
    made.close()


def client(proxy: FaultProxy, timeout: float = 0.4) -> redis.Redis:
    return redis.Redis.from_url(proxy.url, socket_timeout=timeout, retry=None)


def seconds(call) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def test_each_fault_and_its_end(proxy):
    one = client(proxy)
    assert one.ping()
    assert seconds(one.ping) < 0.1
    proxy.set("stall")
    with pytest.raises(redis.TimeoutError):
        one.ping()
    proxy.set("cut")
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            one.ping()
    proxy.set("reset")
    with pytest.raises((redis.ConnectionError, ConnectionResetError)):
        one.ping()
    proxy.set("pass")
    assert one.ping()
    patient = client(proxy, 5)
    assert patient.ping()
    proxy.set("delay", 0.3)
    assert 0.25 < seconds(patient.ping) < 1
    big = bytes(3 << 20)
    patient.set("big", big)
    assert 0.25 < seconds(lambda: patient.get("big")) < 2, "late, and not slower"
    proxy.set("pass")
    assert patient.get("big") == big
    assert seconds(patient.ping) < 0.1


def test_what_was_stalled_comes(proxy):
    one = client(proxy, 5)
    assert one.ping()
    proxy.set("stall")
    done = threading.Thread(target=one.ping)
    done.start()
    time.sleep(0.3)
    assert done.is_alive()
    proxy.set("pass")
    done.join(2)
    assert not done.is_alive()


def test_connections_go_round(valkey, tmp_path):
    fronts, stores = [], [valkey]
    other = Valkey(tmp_path)
    other.start()
    stores.append(other)
    try:
        fronts = [FaultProxy(store.socket) for store in stores]
        balancer = Balancer([f.port for f in fronts])
        for store, name in zip(stores, "ab", strict=True):
            redis.Redis(unix_socket_path=store.socket).set("who", name)

        def who() -> bytes:
            with redis.Redis(port=balancer.port) as fresh:
                return fresh.get("who")

        assert {who() for _ in range(6)} == {b"a", b"b"}
        balancer.targets = [fronts[1].port]
        assert {who() for _ in range(4)} == {b"b"}
        balancer.close()
    finally:
        for front in fronts:
            front.close()
        other.close()
