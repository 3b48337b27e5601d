"""`/metrics` with several API processes on one port."""

from __future__ import annotations

import subprocess
import sys

from bmt_server.api.metrics.multiprocess import install_metrics_route
from bmt_server.ipc.stats_files import WorkerStats
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

# One API process: counts, waits for a line, then scrapes itself. prometheus-client chooses its mode
# at import, by the environment variable that vLLM reads too.
PROCESS = """
import sys
from fastapi import FastAPI
from fastapi.testclient import TestClient
from bmt_server.api.metrics.multiprocess import install_metrics_route
from bmt_server.api.metrics.collectors import StatsCollectors
from bmt_server.api.metrics.counters import Metrics
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from vllm.v1.metrics.prometheus import get_prometheus_registry

app = FastAPI()
attach_router(app)
metrics = Metrics(10)
StatsCollectors(install_metrics_route(app, get_prometheus_registry()), sys.argv[1], list)
done = dict(outcome="ok", prompt_tokens=1, completion_tokens=2, ttft_s=0.1)
metrics.request_finished("math@3f9c0a1b2c3d", **done)
metrics.registry_up.set(int(sys.argv[2]))
metrics.holds.inc(3)
print("counted", flush=True)
sys.stdin.readline()
answer = TestClient(app).get("/metrics")
assert answer.headers["content-type"].startswith("text/plain; version="), answer.headers
print(answer.text, end="", flush=True)
"""


def test_every_process_exports_all_processes_and_workers(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "shared"))
    worker = WorkerStats(resident=["math@3f9c0a1b2c3d"], resident_bytes=512, resident_masks=1)
    worker.write(tmp_path, 1)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), up],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for up in ("1", "0")
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "counted\n"
        text, _ = processes[0].communicate("\n")
        assert processes[0].returncode == 0
        check_scrape(text)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def check_scrape(text: str) -> None:
    families = list(text_string_to_metric_families(text))
    assert len({f.name for f in families}) == len(families), "each family once"
    samples = {s.name: s for f in families for s in f.samples}
    assert samples["bmt_requests_total"].value == 2
    assert samples["bmt_mask_holds"].value == 6
    assert samples["bmt_registry_up"].value == 0, "one process cannot reach it"
    assert samples["bmt_masks_resident_bytes"].value == 512
    assert samples["vllm:lora_adapter_loaded"].labels["adapter_name"] == "math@3f9c0a1b2c3d"
    info = samples["vllm:lora_requests_info"].labels
    assert info["running_lora_adapters"] == "math@3f9c0a1b2c3d"


def test_one_process_leaves_the_route_to_vllm():
    app = FastAPI()
    before = list(app.router.routes)
    assert install_metrics_route(app, REGISTRY) is REGISTRY
    assert app.router.routes == before
