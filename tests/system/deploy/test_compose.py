"""deploy/compose.yaml without an engine of containers: its commands as processes, under load.

Valkey, the server and Prometheus run as the file says, with their users, read-only root and
volumes. Grafana's program comes with its image alone; each query of its dashboard is put to
Prometheus.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bmt_core
import httpx2
import pytest
import yaml
from bmt_client import BmtClient
from bmt_server.registry.embedded import binary_path

from tests.support.deploy import compose
from tests.support.deploy.chart import CHART
from tests.support.deploy.containers import Container, Image, network, program, server_image
from tests.support.masks import random_mask_of
from tests.support.programs import ROOT, tool
from tests.support.scenarios.figures import Figures

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]

API, PROMETHEUS = "http://127.0.0.1:8000", "http://127.0.0.1:9090"
# Two masks fit into the memory for masks, so that a third evicts one.
FLAGS = (
    "--served-model-name=smol --max-model-len=512 --dtype=float32 --enforce-eager"
    " --max-num-seqs=16 --mask-memory-mib=1"
)
MASKS = ("a", "b", "c", "d")
# Figures of a mode that FLAGS does not choose.
SCATTER = "Longest wait for a mask's turn (scatter)"
START_S = 400
# Rates need two scrapes, and each rate of a panel two of its own series.
TRAFFIC_S = 75


def _until(condition: Callable[[], Any], within_s: float, containers: list[Container]) -> Any:
    """The first true value of a condition; fails where it stays false, or a container ends."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if found := condition():
                return found
        for one in containers:
            assert one.process.poll() is None, one.log.read_text()[-4000:]
        assert time.monotonic() < deadline, [one.log.read_text()[-2000:] for one in containers]
        time.sleep(0.5)


class Project:
    """The project's services as they run here."""

    def __init__(self, folder: Path, smol: Path) -> None:
        self.configure(FLAGS)
        self._folder, self._serial = folder, 0
        binary = Path(binary_path())
        valkey = Image(
            {
                "/usr/local/bin/valkey-server": binary,
                "/usr/local/bin/valkey-check-rdb": binary,
                "/usr/local/bin/valkey-cli": program("redis-cli"),
            }
        )
        self._images = {
            **dict.fromkeys(("valkey", "backup", "restore"), valkey),
            "server-cpu": server_image(
                ROOT / "deploy/docker/server.cpu.Dockerfile", Path(sys.prefix)
            ),
            "prometheus": Image({"/bin/prometheus": Path(tool("prometheus")).resolve()}),
        }
        model = folder / "volumes/models/smol"
        shutil.copytree(smol, model)
        for path in (model.parent, model, *model.iterdir()):
            os.chown(path, 10001, 10001)
        self.running: list[Container] = []

    def configure(self, flags: str) -> None:
        """Set BMT_FLAGS for services that start from now on."""
        given = {"BMT_MODEL": "/models/smol", "CPU_KVCACHE_GIB": "1", "BMT_FLAGS": flags}
        given["COMPOSE_PROFILES"] = "cpu,tools"
        self._project = compose.project(compose.variables(**given))

    def up(self, name: str, **more: str) -> Container:
        self._serial += 1
        layers = self._folder / f"run-{self._serial}"
        layers.mkdir()
        (layers / "volumes").symlink_to(self._folder / "volumes")
        one = Container(self._project, name, self._images[name], layers, **more)
        self.running.append(one)
        return one

    def once(self, name: str, **more: str) -> str:
        """The log of a service that ends by itself, as `docker compose run --rm` shows it."""
        one = self.up(name, **more)
        assert one.process.wait(120) == 0, one.log.read_text()
        self.running.remove(one)
        return one.log.read_text()

    def down(self) -> list[int]:
        codes = [one.stop() for one in reversed(self.running)]
        self.running = []
        return codes


@pytest.fixture
def project(tmp_path, smol) -> Iterator[Project]:
    made = Project(tmp_path, smol)
    with network():
        try:
            yield made
        finally:
            made.down()


def _start(project: Project) -> Container:
    """Valkey, then the server, in the order of `depends_on`."""
    valkey = project.up("valkey")
    _until(valkey.healthy, 60, project.running)
    server = project.up("server-cpu")
    _until(server.healthy, START_S, project.running)
    return server


def _ask(key: str, model: str, content: str) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{API}/v1/chat/completions", json=body, headers=headers, timeout=120)


def _query(path: str, **parameters: str) -> Any:
    answer = httpx2.get(f"{PROMETHEUS}/api/v1/{path}", params=parameters).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def _panels() -> dict[str, str]:
    """Queries of the dashboard by title, with its variables as Grafana fills them in."""
    board = json.loads((CHART / "files/dashboard.json").read_text())
    queries = {}
    for panel in board["panels"]:
        (target,) = panel["targets"]
        query = target["expr"].replace("$namespace", "compose").replace("$job", "bmt-server")
        assert "$" not in query
        queries[panel["title"]] = query
    return queries


def test_the_projects_commands_serve_and_are_watched(project, smol):
    figures = Figures("compose")
    server = _start(project)
    prometheus = project.up("prometheus")

    # The line of the log that the documentation names, and what it says to run.
    (line,) = [x for x in server.log.read_text().splitlines() if "docker compose exec" in x]
    _, _, command = line.partition("docker compose exec server-cpu ")
    key = server.run(*command.split()).stdout.strip()
    answer = _ask(key, "smol", "Hello")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]

    # Prometheus' key is its own; the administrator's it cannot read.
    assert httpx2.get(f"{API}/metrics").status_code == 401
    assert prometheus.run("cat", "/keys/metrics").stdout.strip() != key
    denied = prometheus.run("cat", "/keys/admin")
    assert denied.returncode != 0
    assert "denied" in denied.stderr
    assert server.run("sh", "-c", "touch /x").returncode != 0

    with BmtClient(base_url=API, api_key=key) as client:
        for seed, name in enumerate(MASKS):
            client.upload(bmt_core.encode(random_mask_of(smol, seed)), name=name)
    began, asked = time.monotonic(), 0
    while time.monotonic() - began < TRAFFIC_S:
        for name in ("smol", *MASKS):
            assert _ask(key, name, f"Number {asked} is").status_code == 200
            asked += 1
        assert _ask(key, "unknown", "Hello").status_code == 404
        time.sleep(0.5)

    (target,) = _query("targets")["activeTargets"]
    assert target["health"] == "up", target["lastError"]
    empty = {}
    for title, query in _panels().items():
        found = _query("query", query=query)["result"]
        values = [float(one["value"][1]) for one in found]
        print(f"{title}: {len(found)} series, at most {max(values, default=float('nan')):.4g}")
        if not values or any(value != value for value in values):
            empty[title] = query
    assert empty.keys() == {SCATTER}
    assert {"compose"} == {*_query("label/namespace/values")}

    rules = {rule["name"]: rule for group in _query("rules")["groups"] for rule in group["rules"]}
    known = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]
    assert rules.keys() == {rule["alert"] for rule in known}
    for rule in rules.values():
        assert rule["health"] == "ok", rule
        assert rule["state"] != "firing", rule

    # A snapshot of the running Valkey, and a mask that is deleted afterwards.
    taken = project.once("backup")
    (snapshot,) = re.findall(r"masks-\w+\.rdb$", taken, re.MULTILINE)
    with BmtClient(base_url=API, api_key=key) as client:
        client.delete("d")
    assert _ask(key, "d", "Hello").status_code == 404
    early = project.up("restore", SNAPSHOT=snapshot)
    assert early.process.wait(60) == 1
    assert "stop it first" in early.log.read_text()
    project.running.remove(early)
    logs = [one.log for one in project.running]
    codes = project.down()
    assert set(codes) <= {0, -15}, codes

    # The volumes keep everything; then the snapshot takes its place.
    valkey = project.up("valkey")
    _until(valkey.healthy, 60, project.running)
    count = 'REDISCLI_AUTH="$VALKEY_PASSWORD" valkey-cli dbsize'
    assert int(valkey.run("sh", "-c", count).stdout) > len(MASKS)
    project.down()
    assert f"{snapshot} is restored" in project.once("restore", SNAPSHOT=snapshot)
    project.configure(f"{FLAGS} --mask-mode=scatter")
    again = _start(project)
    assert "made a key" not in again.log.read_text()
    assert _ask(key, "d", "Hello").status_code == 200
    project.up("prometheus")
    watched = _panels()[SCATTER]
    _until(lambda: _query("query", query=watched)["result"], 60, project.running)
    panels = len(_panels())
    size = f"{asked} requests for the base and {len(MASKS)} masks"
    figures.record("panels_with_series", panels, "panels", f"== {panels}", size=size)
    for log in [*logs, again.log]:
        assert key not in log.read_text()
        assert compose.PASSWORDS["VALKEY_PASSWORD"] not in log.read_text()
    figures.end()
