"""First installation, rollouts and storage: what works on any cluster.

What would hang there is refused, with the fix.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import trustme
from bmt_server.registry.api_keys import well_formed

from tests.support.deploy.chart import (
    CHART,
    EXAMPLES,
    MINIMAL,
    environment,
    named,
    one,
    pods,
    refusal,
    render,
    server,
    server_pod,
    template,
)

VALKEY = ("--set", "valkey.enabled=true")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # Apache-2.0, no token


def values(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set-json", setting)]


@pytest.mark.found
def test_the_first_installation_needs_no_token_no_claim_and_no_gpu():
    objects = named("first")
    assert MODEL in server(objects)["args"]
    assert "HF_TOKEN" not in environment(server(objects))
    assert not [o for o in objects if o["kind"] == "PersistentVolumeClaim"]
    assert "volumeClaimTemplates" not in one(objects, "StatefulSet")["spec"]
    assert "nvidia.com/gpu" not in json.dumps(objects)
    assert one(objects, "Deployment")["spec"]["replicas"] == 1
    # With one flag more than nothing, on a GPU: one server, and no disk but Valkey's.
    objects = render(*VALKEY)
    assert server(objects)["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert not [o for o in objects if o["kind"] == "PersistentVolumeClaim"]


@pytest.mark.found
def test_claims_that_only_one_node_attaches_are_for_one_pod():
    claim = ("modelCache.enabled=true",)
    several = values("replicas=2", *claim)
    for more in ([], values('modelCache.accessModes=["ReadWriteOncePod"]')):
        message = refusal("-f", str(MINIMAL), *several, *more)
        assert "ReadWriteMany" in message
        assert "modelCache.enabled=false" in message
    message = refusal(
        *("-f", str(MINIMAL)), *values("replicas=2", 'modelCache.existingClaim="models"')
    )
    assert "ReadWriteMany" in message
    for scaler in ("keda", "autoscaling"):
        scaled = values(
            f"{scaler}.enabled=true", 'monitoring={"monitor": "pod", "port": 9400}', *claim
        )
        assert "up to 8 pods" in refusal("-f", str(MINIMAL), *scaled)
    shared = values('modelCache.accessModes=["ReadWriteMany"]')
    claimed = one(render("-f", str(MINIMAL), *several, *shared), "PersistentVolumeClaim")
    assert claimed["spec"]["accessModes"] == ["ReadWriteMany"]
    one(render("-f", str(MINIMAL), *values(*claim)), "PersistentVolumeClaim")


def test_a_shared_read_only_disk_is_mounted_so_and_not_downloaded_to():
    shared = values('modelCache.existingClaim="m"', 'modelCache.accessModes=["ReadOnlyMany"]')
    assert "huggingface.download=false" in refusal("-f", str(MINIMAL), *shared)
    objects = render("-f", str(MINIMAL), *shared, "--set", "huggingface.download=false")
    (mount,) = [m for m in server(objects)["volumeMounts"] if m["name"] == "models"]
    assert mount["readOnly"] is True


def test_models_from_any_volume():
    nfs = '{"nfs": {"server": "files", "path": "/models"}}'
    objects = render("-f", str(MINIMAL), *values(f"modelCache.volume={nfs}", "replicas=3"))
    (volume,) = [v for v in server_pod(objects)["volumes"] if v["name"] == "models"]
    assert volume == {"name": "models", **json.loads(nfs)}
    message = refusal(
        "-f", str(MINIMAL), *values(f"modelCache.volume={nfs}", "modelCache.enabled=true")
    )
    assert "choose one" in message
    message = refusal("-f", str(MINIMAL), "--set", "huggingface.download=false")
    assert "modelCache" in message


@pytest.mark.found
@pytest.mark.parametrize(
    ("settings", "surge", "unavailable"),
    [
        ([], 0, 1),
        (["replicas=4"], 0, 1),
        (['accelerator="cpu"'], 1, 0),
        (['accelerator="cpu"', "modelCache.enabled=true"], 0, 1),
        (['strategy={"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}'], 2, 0),
    ],
)
def test_rollouts_need_no_spare_gpu_and_no_second_node_for_a_disk(settings, surge, unavailable):
    objects = render("-f", str(MINIMAL), *values(*settings))
    rolling = one(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxSurge"], rolling["maxUnavailable"]) == (surge, unavailable)


def test_strategies_that_could_replace_no_pod_are_refused():
    recreate = render("-f", str(MINIMAL), *values('strategy={"type": "Recreate"}'))
    assert one(recreate, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    none = 'strategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}'
    assert "both 0" in refusal("-f", str(MINIMAL), *values(none))
    for strategy in ('{"type": "RollingUpdate"}', '{"rollingUpdate": {"maxSurge": 1}}'):
        held = values("modelCache.enabled=true", f"strategy={strategy}")
        assert "maxSurge 0" in refusal("-f", str(MINIMAL), *held)
    message = refusal(
        "-f",
        str(MINIMAL),
        *values('strategy={"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}'),
    )
    assert "remove one" in message


@pytest.mark.found
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_two_renderings_without_a_cluster_are_equal(path):
    """Argo CD and others render without a cluster, at every sync."""
    one_time, other = (template("-f", str(path)).stdout for _ in range(2))
    assert one_time == other != ""


@pytest.mark.found
def test_secrets_are_made_by_a_job_or_come_from_elsewhere():
    objects = render(*VALKEY)
    assert not [o for o in objects if o["kind"] == "Secret"]
    job = one(objects, "Job", "secrets")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    made = {(w["name"], w["key"]) for w in json.loads(environment(container)["WANTED"])}
    used = {
        (e["secretKeyRef"]["name"], e["secretKeyRef"]["key"])
        for spec in pods(objects)
        for c in spec["containers"]
        for e in environment(c).values()
        if isinstance(e, dict)
    }
    assert used == made == {("masks-valkey", "password"), ("masks-admin", "admin-key")}
    role = one(objects, "Role")
    assert all(r["resources"] == ["secrets"] for r in role["rules"])
    assert {v for r in role["rules"] for v in r["verbs"]} == {"create", "get"}
    # With Secrets of the operator's own, no pod needs rights on the cluster's API.
    given = ("--set", "auth.existingSecret=a", "--set", "valkey.existingSecret=v")
    kinds = {o["kind"] for o in render(*VALKEY, *given)}
    assert not kinds & {"Role", "RoleBinding", "Job"}
    off = ("--set", "secrets.generate=false")
    assert "valkey.existingSecret" in refusal(*VALKEY, *off)
    printed = render("-f", str(MINIMAL), *off)
    assert "BMT_ADMIN_KEY" not in environment(server(printed))


class FakeCluster(BaseHTTPRequestHandler):
    """Secrets of one namespace."""

    secrets: ClassVar[dict[str, dict[str, str]]] = {}

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == "Bearer token"
        assert self.path == "/api/v1/namespaces/inference/secrets"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        self._answer(409 if name in self.secrets else 201)
        self.secrets.setdefault(name, body["data"])

    def do_GET(self) -> None:
        self._answer(200, {"data": self.secrets[self.path.rpartition("/")[2]]})

    def _answer(self, status: int, body: object = None) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body or {}).encode())

    def log_message(self, *_: object) -> None:
        """No lines on standard error."""


@pytest.mark.found
def test_made_secrets_are_valid_and_never_change(tmp_path):
    authority = trustme.CA()
    cluster = HTTPServer(("127.0.0.1", 0), FakeCluster)
    FakeCluster.secrets = {"foreign": {"other": "eA=="}}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    cluster.socket = context.wrap_socket(cluster.socket, server_side=True)
    serving = threading.Thread(target=cluster.serve_forever, daemon=True)
    serving.start()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("token\n")
    (tmp_path / "namespace").write_text("inference")

    def run(*wanted: tuple[str, str]) -> subprocess.CompletedProcess[str]:
        asked = json.dumps([{"name": name, "key": key} for name, key in wanted])
        variables = {
            **os.environ,
            **{"WANTED": asked, "ACCOUNT": str(tmp_path)},
            **{"KUBERNETES_SERVICE_HOST": "127.0.0.1"},
            **{"KUBERNETES_SERVICE_PORT": str(cluster.server_port)},
        }
        script = (CHART / "files/make_secrets.py").read_text()
        return subprocess.run(
            [sys.executable, "-c", script],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    both = (("masks-valkey", "password"), ("masks-admin", "admin-key"))
    try:
        assert run(*both).returncode == 0
        first = {name: dict(data) for name, data in FakeCluster.secrets.items()}
        again = run(*both)
        assert again.returncode == 0, again.stderr
        assert first == FakeCluster.secrets
        assert "exists" in again.stdout
        wrong = run(("foreign", "password"))
        assert wrong.returncode != 0
        assert "without the key password" in wrong.stderr
    finally:
        cluster.shutdown()
        serving.join()
        cluster.server_close()
    key = base64.b64decode(first["masks-admin"]["admin-key"]).decode()
    assert well_formed(key)
    password = base64.b64decode(first["masks-valkey"]["password"]).decode()
    assert len(password) >= 32
    assert key not in again.stdout


@pytest.mark.found
def test_users_may_be_assigned_by_the_platform():
    objects = named("openshift")
    specs = pods(objects)
    assert len(specs) >= 4
    for spec in specs:
        security = spec["securityContext"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & security.keys()
        assert security["runAsNonRoot"] is True
    assert server_pod(render(*VALKEY))["securityContext"]["runAsUser"] == 10001


@pytest.mark.found
@pytest.mark.parametrize(("cache", "scratch", "fits"), [(10, "20Gi", True), (100, "20Gi", False)])
def test_the_mask_cache_fits_in_its_volume(cache, scratch, fits):
    sizes = values(f"masks.cacheGiB={cache}", f'scratchSize="{scratch}"')
    done = template("-f", str(MINIMAL), *sizes)
    assert (done.returncode == 0) is fits
    assert fits or ("scratchSize" in done.stderr and "evict" in done.stderr)


def test_names_of_any_release_are_legal():
    longest = "m" + "x" * 51 + "y"
    objects = render(
        *VALKEY,
        *("--set", "backup.schedule=@daily", "--set", "maintenance.gcSchedule=@daily"),
        *("--set", "trainingJob.enabled=true", "--set", "modelCache.enabled=true"),
        release=longest,
    )
    found = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(found)) == len(found)
    most = {"StatefulSet": 52, "CronJob": 52}
    assert all(len(name) <= most.get(kind, 63) for kind, name in found), found
    done = template(*VALKEY, release="1abc")
    assert "begins with a letter" in done.stderr
