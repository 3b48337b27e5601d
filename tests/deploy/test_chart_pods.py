"""Additions of operators to pods: volumes, variables, containers, TLS, certificates, nodes."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading

import pytest
import trustme

from tests.support.deploy.chart import (
    CHART,
    MINIMAL,
    containers,
    environment,
    one,
    pod_templates,
    pods,
    refused,
    render,
    server,
    server_pod,
    settings,
    validate,
    with_values,
)

VALKEY = ("--set", "valkey.enabled=true")
ALL_PODS = (
    *VALKEY,
    *("--set", "trainingJob.enabled=true", "--set", "backup.schedule=@daily"),
    *("--set", "maintenance.gcSchedule=@daily", "--set", "maintenance.fsckSchedule=@daily"),
    *("--set", "worker.enabled=true", "--set", "worker.existingSecret=train-key"),
    *("--set", "extraArgs={--files=s3://bucket/files}"),
)


@pytest.mark.found
def test_anything_can_be_mounted_and_run_next_to_the_server():
    init = {"name": "fetch", "image": "i", "resources": {}}
    objects = with_values(
        extraVolumes=[{"name": "certs", "secret": {"secretName": "certs"}}],
        extraVolumeMounts=[{"name": "certs", "mountPath": "/certs"}],
        extraEnvFrom=[{"secretRef": {"name": "more"}}],
        initContainers=[init],
        sidecars=[{"name": "proxy", "image": "p"}],
        dnsConfig={"options": [{"name": "ndots", "value": "2"}]},
        priorityClassName="inference",
    )
    validate(objects)
    spec = server_pod(objects)
    assert {"name": "certs", "secret": {"secretName": "certs"}} in spec["volumes"]
    assert {"name": "certs", "mountPath": "/certs"} in server(objects)["volumeMounts"]
    assert server(objects)["envFrom"] == [{"secretRef": {"name": "more"}}]
    assert spec["initContainers"] == [init]
    assert [c["name"] for c in spec["containers"]] == ["server", "proxy"]
    assert spec["dnsConfig"]["options"][0]["value"] == "2"
    assert spec["priorityClassName"] == "inference"


def test_names_and_paths_of_the_chart_are_not_taken_twice():
    volume = [{"name": "scratch", "emptyDir": {}}]
    assert "extraVolumes: scratch" in refused(extraVolumes=volume)
    mount = [{"name": "x", "mountPath": "/models/"}]
    assert "modelCache.volume" in refused(extraVolumeMounts=mount)
    assert "choose another name" in refused(sidecars=[{"name": "server", "image": "x"}])
    assert "podLabels" in refused(podLabels={"app.kubernetes.io/name": "mine"})
    # Server-side apply refuses a list with a name twice.
    objects = with_values(
        extraEnv=[{"name": "HF_HOME", "value": "/big"}, {"name": "A", "value": "b"}]
    )
    names = [e["name"] for e in server(objects)["env"]]
    assert len(names) == len(set(names))
    assert environment(server(objects))["HF_HOME"] == "/big"
    assert environment(server(objects))["A"] == "b"


@pytest.mark.found
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--port=9000", "remove it"),
        ("--mask-cache-gib=100", "masks.cacheGiB"),
        ("--mask_cache_gib=100", "masks.cacheGiB"),
        ("--tensor-parallel-size=2", "tensorParallelSize"),
        ("--max-density=0.5", "masks.maxSparsity"),
        ("--ssl-keyfile=/x", "tls.existingSecret"),
        ("--nnodes=2", "several nodes"),
        ("--headless", "cannot receive masks"),
        ("--distributed-executor-backend=ray", "several nodes"),
        ("--pipeline-parallel-size=2", "resources"),
    ],
)
def test_flags_that_would_contradict_the_chart_are_refused(flag, words):
    assert words in refused(extraArgs=[flag])


def test_a_contradicted_gpu_count_is_the_operators():
    objects = with_values(
        extraArgs=["--pipeline-parallel-size=2"],
        resources={"limits": {"nvidia.com/gpu": 2}},
    )
    assert server(objects)["resources"] == {"limits": {"nvidia.com/gpu": 2}}


@pytest.mark.found
def test_tls_in_the_pod_reaches_every_client():
    secret = {"existingSecret": "cert"}
    monitoring = {"monitor": "service", "existingSecret": "metrics"}
    objects = with_values(
        tls=secret, monitoring=monitoring, trainingJob={"enabled": True, "existingSecret": "u"}
    )
    validate(objects)
    container = server(objects)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    flags = dict(a.partition("=")[::2] for a in container["args"])
    assert flags["--ssl-certfile"] == f"{mounts['tls']}/tls.crt"
    assert flags["--ssl-keyfile"] == f"{mounts['tls']}/tls.key"
    assert one(objects, "Service")["spec"]["ports"][0]["appProtocol"] == "https"
    (endpoint,) = one(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] == "masks.inference.svc"
    assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "cert", "key": "ca.crt"}
    (trainer,) = one(objects, "Job", "train")["spec"]["template"]["spec"]["containers"]
    (tester,) = one(objects, "Pod")["spec"]["containers"]
    for client in (environment(trainer), environment(tester)):
        assert client["BMT_URL"] == "https://masks.inference.svc:8000"
        assert client.get("SERVER_CA") or client.get("SSL_CERT_FILE") == "/etc/bmt/tls/ca.crt"
    # Without it, all of them use HTTP.
    plain = render("-f", str(MINIMAL))
    assert server(plain)["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
    assert "tls" not in {v["name"] for v in server_pod(plain)["volumes"]}


@pytest.mark.found
@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_a_private_ca_reaches_the_hub_and_the_collector(kind):
    objects = with_values(privateCA={kind: "company"}, trainingJob={"enabled": True})
    validate(objects)
    for spec in (server_pod(objects), one(objects, "Job", "train")["spec"]["template"]["spec"]):
        (container,) = spec["containers"]
        variables = environment(container)
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE"):
            assert variables[name] == "/etc/bmt/ca/ca.crt"
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        (volume,) = [v for v in spec["volumes"] if v["name"] == mounts["/etc/bmt/ca"]]
        assert (volume.get("configMap") or volume["secret"])["items"][0]["path"] == "ca.crt"
    assert "choose one" in refused(privateCA={"configMap": "a", "secret": "b"})


@pytest.mark.found
def test_every_pod_runs_where_the_operator_wants_it():
    values = {
        "image": {"pullSecrets": ["pull"]},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "high",
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
        "podSecurityContext": {"runAsUser": 4242},
    }
    words = settings(values)
    objects = render(*ALL_PODS, *words)
    validate(objects)
    found = {labels["app.kubernetes.io/name"]: spec for labels, spec in pod_templates(objects)}
    assert found.keys() == {
        *("bmt-server", "valkey", "bmt-server-test", "bmt-trainer"),
        *("bmt-maintenance", "bmt-secrets", "bmt-worker"),
    }
    assert len(pods(objects)) == 9
    for spec in pods(objects):
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert spec["nodeSelector"] == {"pool": "gpu"}
        assert spec["tolerations"] == values["tolerations"]
        assert spec["priorityClassName"] == "high"
        assert spec["dnsConfig"]
    for name in ("bmt-server", "bmt-server-test", "bmt-trainer", "bmt-worker", "bmt-secrets"):
        assert found[name]["securityContext"]["runAsUser"] == 4242
        assert found[name]["securityContext"]["runAsNonRoot"] is True
    own = {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "db", "operator": "Exists"}]}
    moved = settings({f"valkey.{name}": value for name, value in own.items()})
    (valkey,) = [
        s for labels, s in pod_templates(render(*VALKEY, *words, *moved))
        if labels["app.kubernetes.io/name"] == "valkey"
    ]  # fmt: skip
    assert valkey["nodeSelector"] == {"disk": "ssd"}
    assert valkey["tolerations"][0]["key"] == "db"


def test_containers_may_have_a_context_of_the_operator():
    context = {"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}
    objects = with_values(containerSecurityContext=context)
    assert server(objects)["securityContext"]["seccompProfile"]["type"] == "Localhost"
    assert server(objects)["securityContext"]["allowPrivilegeEscalation"] is False


class FakeServer(http.server.BaseHTTPRequestHandler):
    """A server with the model `m` and the key `k`."""

    def do_GET(self) -> None:
        if self.path == "/readyz":
            return self._answer(200, {})
        if self.headers["Authorization"] != "Bearer k":
            return self._answer(401, {"error": "no key"})
        return self._answer(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "m"
        self._answer(200, {"choices": [{"text": "!"}]})

    def _answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """No lines on standard error."""


@pytest.mark.found
def test_helm_test_asks_for_an_answer_of_the_model(tmp_path):
    authority = trustme.CA()
    fake = http.server.HTTPServer(("127.0.0.1", 0), FakeServer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    fake.socket = context.wrap_socket(fake.socket, server_side=True)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    serving = threading.Thread(target=fake.serve_forever, daemon=True)
    serving.start()

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        script = (CHART / "files/try_server.py").read_text()
        fixed = {
            **{"BMT_URL": f"https://127.0.0.1:{fake.server_port}", "MODEL": "m"},
            **{"SSL_CERT_FILE": str(tmp_path / "ca.crt")},
        }
        return subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **fixed, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        assert "m answered '!'" in run(BMT_API_KEY="k").stdout
        assert run().stdout == "ready\n"
        assert "401" in run(BMT_API_KEY="wrong").stderr
        assert "no other" in run(BMT_API_KEY="k", MODEL="other").stderr
        assert run(SSL_CERT_FILE=str(CHART / "Chart.yaml")).returncode != 0
    finally:
        fake.shutdown()
        serving.join()
        fake.server_close()


def test_containers_of_the_chart_have_names_of_their_own():
    for spec in pods(render(*ALL_PODS)):
        names = [c["name"] for c in containers(spec)]
        assert len(names) == len(set(names))
