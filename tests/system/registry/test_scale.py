"""A name of 10,000 versions and a registry of 100,000 names, by this revision and a former one.

$BMT_FORMER_REVISION: commit to compare with.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bmt_core
import httpx2
import pytest
import redis
from bmt_server.ipc.blob import PREFIX

from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.full_registry import fill
from tests.support.scenarios.revisions import ROOT, export

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]

FORMER = os.environ.get("BMT_FORMER_REVISION", "ee2a063")
VERSIONS = scaled(10_000, 100)
NAMES = scaled(100_000, 1000)
PUBLISHES = 20
SOURCES = ("core", "trainer", "server", "client", ".")


class Measured:
    """A replica of the sources in `tree` that measures its event loop."""

    def __init__(self, tree: Path, url: str, folder: Path) -> None:
        script = ROOT / "tests" / "support" / "children" / "measured_replica.py"
        path = os.pathsep.join(str(tree / source) for source in SOURCES)
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), url, str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._line()
        self.ready_s = time.monotonic() - began
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{ready['port']}",
            headers={"Authorization": f"Bearer {ready['key']}"},
            timeout=120,
        )

    def ask(self, wanted: str = "") -> dict[str, float]:
        self.process.stdin.write(wanted + "\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """Sources by the suffix of their figures."""
    former = tmp_path_factory.mktemp("former") / "tree"
    missing = export(FORMER, former)
    return {"": ROOT} if missing else {"_before": former, "": ROOT}


@pytest.fixture
def registry(valkey):
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        client.flushall()
        yield client


def publish(replica: Measured, name: str, seed: int) -> float:
    data = bmt_core.encode(make_mask(seed, number=seed))
    began = time.monotonic()
    answer = replica.http.put(f"/v1/masks/{name}", content=data)
    assert answer.status_code == 201, answer.text
    return time.monotonic() - began


@pytest.mark.found
def test_publish_under_many_versions(valkey, registry, trees, tmp_path):
    (few,) = fill(registry, 1, 10)
    (many,) = fill(registry, 1, VERSIONS, first=10)
    figures, seeds = Figures("publish", "publish_under"), iter(range(10**6, 2 * 10**6))
    for suffix, tree in trees.items():
        with contextlib.closing(Measured(tree, valkey.url, tmp_path / f"c{suffix}")) as replica:
            seconds: dict[str, list[float]] = {few: [], many: []}
            cpu: dict[str, float] = {few: 0.0, many: 0.0}
            for name in (few, many):
                publish(replica, name, next(seeds))
            for _ in range(PUBLISHES):
                for name in (few, many):
                    before = replica.ask()["cpu_s"]
                    seconds[name].append(publish(replica, name, next(seeds)))
                    cpu[name] += replica.ask()["cpu_s"] - before
        ratio = statistics.median(seconds[many]) / statistics.median(seconds[few])
        size = f"{PUBLISHES} publishes each, {VERSIONS} versions"
        figures.record(
            f"10000_versions_over_10{suffix}",
            ratio,
            "ratio",
            "" if suffix else "<= 1.5",
            size=size,
            note=f"CPU time {cpu[many] / cpu[few]:.2f} times, "
            f"{1e3 * statistics.median(seconds[many]):.1f} ms",
        )
    figures.end()


@pytest.mark.found
def test_many_names(valkey, registry, trees, tmp_path):
    for at in range(0, NAMES, 5000):
        fill(registry, min(5000, NAMES - at), first=at)
    registry.set(f"{PREFIX}blob:{'f' * 64}", b"an orphan")
    registry.config_set("slowlog-log-slower-than", 1000)
    registry.config_set("slowlog-max-len", 1000)
    figures, stalls = Figures("many_names"), Figures("longest", "many_names")
    for suffix, tree in trees.items():
        registry.slowlog_reset()
        with contextlib.closing(Measured(tree, valkey.url, tmp_path / f"c{suffix}")) as replica:
            replica.ask()  # the start is not counted
            longest = {}
            for what, call in {
                "models": lambda r: r.http.get("/v1/models").json()["data"],
                "models again": lambda r: r.http.get("/v1/models").json()["data"],
                "masks": lambda r: r.http.get("/v1/masks", params={"limit": 1000}).json()["data"],
                "blob": one_blob,
                "unknown": lambda r: r.http.get("/v1/masks/none:x"),
                "upload": lambda r: publish(r, "new", time.time_ns()),
            }.items():
                call(replica)
                longest[what] = replica.ask()["cpu_ms"]
            for what in ("gc", "fsck"):
                found = replica.ask(what)
                longest[what] = found["cpu_ms"]
            ready_s = replica.ready_s
        slow = max((entry["duration"] for entry in registry.slowlog_get(1000)), default=0) / 1e3
        size, bound = f"{NAMES} names", "" if suffix else "<= 50"
        note = ", ".join(f"{what} {ms:.1f}" for what, ms in longest.items())
        name = f"stall_100000_names_ms{suffix}"
        stalls.record(name, max(longest.values()), "ms of CPU", bound, size=size, note=note)
        figures.record(f"registry_longest_command{suffix}", slow, "ms", bound, size=size)
        figures.record(f"ready{suffix}", ready_s, "s", "" if suffix else "<= 5", size=size)
        figures.record(
            f"memory{suffix}", found["rss_mib"], "MiB", "" if suffix else "<= 350", size=size
        )
    stalls.end()
    figures.end()


def one_blob(replica: Measured) -> None:
    version = replica.http.get("/v1/masks/m000000").json()
    assert replica.http.get(f"/v1/blobs/{version['file_digest']}").status_code == 200
