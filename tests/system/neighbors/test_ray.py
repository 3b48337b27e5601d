"""Ray Serve with `examples/neighbors/ray_serve.py`: real Ray, real server, one replica."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bmt_core
import httpx2
import pytest
import yaml
from bmt_client import BmtClient

from tests.support.http.ports import free_port
from tests.support.masks import random_mask_of
from tests.support.scenarios.neighbors import PROMPT, ROOT, python_of, running
from tests.support.served import Valkey, until

pytestmark = [pytest.mark.operate, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def served(
    smol: Path, admin_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("ray")
    registry = Valkey(folder)
    registry.start()
    port = free_port()
    flags = f"--served-model-name smol --max-model-len 2048 --max-num-seqs 8 --enforce-eager \
        --dtype float32 --data-dir {folder}/data"
    application = {
        "name": "masks",
        "route_prefix": "/",
        "import_path": "examples.neighbors.ray_serve:app",
        "args": {
            "model": str(smol),
            "registry": registry.url,
            "program": f"{sys.executable} -m bmt_server",
            "flags": flags,
        },
    }
    config = folder / "serve.yaml"
    http = {"host": "127.0.0.1", "port": port}
    config.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
    program = python_of("ray").with_name("serve")
    env = {
        "BMT_ADMIN_KEY": admin_key,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {admin_key}"}
    try:
        with (
            running([program, "run", config], f"{url}/readyz", folder / "log", env, ROOT, 600),
            httpx2.Client(base_url=url, headers=headers, timeout=120) as client,
        ):
            yield client
    finally:
        registry.close()
    until(lambda: not servers(smol), 60)


def servers(model: Path) -> list[int]:
    """Process ids of servers of this model that have a parent from Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().split("\0")
        except OSError:
            continue
        ours = {"bmt_server", "--registry", str(model)} <= set(command)
        if ours and "RAY_JOB_ID=" in path.with_name("environ").read_text():
            found.append(int(path.parent.name))
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def chat(model: str, **changes: object) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    return {**body, "max_tokens": 24, "temperature": 0, **changes}


def words(served: httpx2.Client, model: str) -> str:
    answer = served.post("/v1/chat/completions", json=chat(model))
    answer.raise_for_status()
    said: str = answer.json()["choices"][0]["message"]["content"]
    return said


def test_masks_are_uploaded_and_served_through_ray(served, smol, admin_key):
    with BmtClient(str(served.base_url), admin_key) as client:
        mask = bmt_core.encode(random_mask_of(smol, 5, sparsity=0.02))
        version = client.upload(mask, name="reverse", alias=["prod"])
    answer = served.post("/v1/chat/completions", json=chat("reverse:prod"))
    assert answer.json()["model"] == version.model
    assert words(served, "reverse") != words(served, "smol")
    unknown = served.post("/v1/chat/completions", json=chat("none"))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert served.get("/v1/masks/%2e%2e").status_code in (400, 404)
    keyless = httpx2.get(str(served.base_url).rstrip("/") + "/v1/models")
    assert keyless.status_code == 401


def test_a_stream_comes_as_it_is_generated_and_ends_with_its_client(served):
    body = chat("reverse", stream=True, max_tokens=1500, ignore_eos=True)
    started = time.monotonic()
    arrived: list[float] = []
    with served.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["choices"]:
                arrived.append(time.monotonic() - started)
            if len(arrived) == 10:
                break
    assert arrived[-1] - arrived[1] > 0.02, "not all at once"

    def running_requests() -> float:
        text = served.get("/metrics").text
        lines = [x for x in text.splitlines() if x.startswith("vllm:num_requests_running{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    until(lambda: running_requests() == 0, 15)


def test_a_replica_whose_server_ended_is_replaced(served, smol):
    before = words(served, "reverse")
    (server,) = servers(smol)
    os.kill(server, signal.SIGKILL)
    refused = served.post("/v1/chat/completions", json=chat("reverse"))
    assert refused.status_code == 503, refused.text
    assert refused.json()["error"]["code"] == "server_unreachable"
    assert refused.headers["retry-after"] == "1"

    def replaced() -> bool:
        try:
            return served.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    until(replaced, 300)
    (replacement,) = servers(smol)
    assert replacement != server
    assert words(served, "reverse") == before
    # A server ends with its replica, however that ends.
    os.kill(parent_of(replacement), signal.SIGKILL)
    until(lambda: replacement not in servers(smol), 60)
