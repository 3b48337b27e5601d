"""Redis killed, hung, slow or resetting: resident masks are served as before, others are refused
at once, and all is well again a moment after it is back."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable

import pytest

from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, Target, closed_loop
from tests.support.scenarios.proxy import FaultProxy
from tests.support.scenarios.servers import server, target, upload

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

REQUESTS = scaled(400, 40)  # of each window, with and without the fault
AT_ONCE = 4
RESIDENT = [f"r{i}" for i in range(8)]


@pytest.fixture(scope="module")
def proxy(valkey):
    made = FaultProxy(valkey.socket)
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(smol, proxy, admin_key, tmp_path_factory):
    with server(smol, tmp_path_factory.mktemp("faults"), proxy.url, admin_key) as one:
        upload(one, smol, {name: i for i, name in enumerate(RESIDENT)})
        yield one


async def window(to: Target) -> list[Answer]:
    """Requests for resident masks in turn, each with a prompt of its own."""
    return await closed_loop(
        lambda i: to.ask(RESIDENT[i % len(RESIDENT)], prompt=f"Number {i} of many is", tokens=4),
        REQUESTS,
        AT_ONCE,
    )


async def during_work(to: Target, work: asyncio.Task, names: itertools.count) -> list[Answer]:
    """While it goes on, requests for names that only the registry could know, one at a time."""
    found = []
    while not work.done():
        found.append(await to.ask(f"unknown-{next(names)}", within_s=10))
        await asyncio.sleep(0.5)
    return found


async def recovered(to: Target, names: itertools.count) -> float:
    """Seconds until the registry is asked again: what it does not know is a 404."""
    start = time.monotonic()
    while True:
        answer = await to.ask(f"unknown-{next(names)}", within_s=10)
        if answer.status == 404:
            return time.monotonic() - start
        assert answer.status == 503, answer
        assert time.monotonic() - start < 30
        await asyncio.sleep(0.05)


def faults(valkey, proxy: FaultProxy) -> dict[str, tuple[Callable, Callable]]:
    """Each fault: how it begins and how it ends."""
    stop, go_on = (
        lambda s=s: valkey.process.send_signal(s) for s in (signal.SIGSTOP, signal.SIGCONT)
    )
    return {
        "killed": (valkey.kill, valkey.start),
        "hung": (stop, go_on),
        "slow": (lambda: proxy.set("delay", 1.0), lambda: proxy.set("pass")),
        "resetting": (lambda: proxy.set("reset"), lambda: proxy.set("pass")),
        "silent": (lambda: proxy.set("stall"), lambda: proxy.set("pass")),
    }


def test_registry_faults(served, valkey, proxy):
    figures, to = Figures("registry_faults"), target(served)

    async def run() -> None:
        names = itertools.count()
        await window(to)  # all masks resident, all paths warm
        for fault, (begin, end) in faults(valkey, proxy).items():
            before = await window(to)
            begin()
            try:
                await asyncio.sleep(1)
                during = asyncio.create_task(window(to))
                refused = await during_work(to, during, names)
            finally:
                end()
            back = await recovered(to, names)
            after = await window(to)
            tell(figures, fault, [*before, *after], await during, refused, back)
            for path in ("/livez", "/readyz"):
                assert (await to.get(path))[0] == 200

    asyncio.run(run())
    figures.end()


def tell(
    figures: Figures,
    fault: str,
    without: list[Answer],
    during: list[Answer],
    refused: list[Answer],
    back: float,
) -> None:
    size = f"{len(during)} requests of resident masks, {AT_ONCE} at once"
    assert all(a.ok for a in without)
    share = 100 * sum(a.ok for a in during) / len(during)
    figures.record(f"{fault}_served", share, "%", "== 100", size=size)
    usual, now = (percentile([a.ttft_s for a in x], 99) for x in (without, during))
    figures.record(
        f"{fault}_ttft_p99_ratio",
        now / usual,
        "ratio",
        "<= 1.2",
        size=size,
        note=f"{now * 1e3:.0f} ms against {usual * 1e3:.0f} ms before and after",
    )
    # An unknown name is looked up in the registry each time.
    assert {(a.status, a.code) for a in refused} == {(503, "registry_unavailable")}, refused
    assert all(int(a.retry_after) >= 1 for a in refused)
    slowest = max(a.total_s for a in refused)
    figures.record(f"{fault}_refused_in", slowest, "s", "<= 1.1", size=f"{len(refused)} requests")
    figures.record(f"{fault}_recovered_in", back, "s", "<= 5", size="once")
