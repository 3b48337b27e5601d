"""Helm chart: schemas of the Kubernetes API, and our own rules, on the rendered examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.settings import options

from tests.support.deploy.chart import (
    CHART,
    EXAMPLES,
    MINIMAL,
    containers,
    environment,
    example,
    helm,
    named,
    one,
    pods,
    refused,
    render,
    server,
    template,
    validate,
    with_values,
)
from tests.support.programs import ROOT, tool


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda p: p.stem)
def test_lint_and_api_schemas(values):
    done = helm("lint", "--strict", str(CHART), "-f", str(values))
    assert done.returncode == 0, done.stdout
    validate(example(values))


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda p: p.stem)
def test_pods_meet_the_restricted_standard(values):
    specs = pods(example(values))
    assert specs
    for spec in specs:
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        # OpenShift assigns a user itself.
        assert security.get("runAsUser", 1) > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {kind for v in spec.get("volumes", []) for kind in v if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "configMap", "projected"}
        for container in containers(spec):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in p for p in container.get("ports", []))
            assert container["resources"]


def test_writable_folders_are_volumes():
    """The root file system is read-only, so each folder in the environment must be a mount."""
    objects = example(MINIMAL)
    mounts = [m["mountPath"] for m in server(objects)["volumeMounts"]]
    for name in ("HOME", "HF_HOME", "BMT_DATA_DIR", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"):
        folder = environment(server(objects))[name]
        assert any(folder == m or folder.startswith(f"{m}/") for m in mounts), name
    assert {"/tmp", "/dev/shm"} <= set(mounts)


def test_flags_exist():
    """Each flag of the container is one of `bmt-server serve` or vLLM 0.32."""
    ours = {option.flag for _, option, _ in options()}
    vllm = {"--host", "--port", "--shutdown-timeout", "--tensor-parallel-size", "--max-model-len"}
    vllm |= {"--revision", "--served-model-name", "--logging-config.formatter"}
    vllm |= {"--otlp-traces-endpoint", "--ssl-certfile", "--ssl-keyfile", "--enable-ssl-refresh"}
    for path in EXAMPLES:
        extra = yaml.safe_load(path.read_text()).get("extraArgs", [])
        for argument in server(example(path))["args"]:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and argument not in extra:
                assert flag in vllm | ours, flag


def test_the_former_name_of_the_largest_sparsity_is_accepted():
    objects = render("-f", str(MINIMAL), "--set-json", "masks.maxDensity=0.2")
    assert "--max-sparsity=0.2" in server(objects)["args"]
    assert "--max-sparsity=0.05" in server(example(MINIMAL))["args"]


def test_a_stopping_pod_has_time_for_running_requests():
    objects = example(MINIMAL)
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    notice = server(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    (drain,) = [a for a in server(objects)["args"] if a.startswith("--shutdown-timeout=")]
    assert spec["terminationGracePeriodSeconds"] > notice + int(drain.partition("=")[2])


def test_probes_check_the_engine_only():
    container = server(example(MINIMAL))
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= 60


def test_secrets_are_references():
    """Passwords and keys come from Secrets; none is written into a Deployment."""
    for path in EXAMPLES:
        for name, value in environment(server(example(path))).items():
            if name in ("BMT_ADMIN_KEY", "HF_TOKEN", "BMT_REGISTRY_PASSWORD"):
                assert "secretKeyRef" in value, (path.stem, name)
    registry = environment(server(named("gpu")))
    assert registry["BMT_REGISTRY"] == "redis://masks-valkey:6379/0"
    assert registry["BMT_REGISTRY_PASSWORD"]["secretKeyRef"]["key"] == "password"


def test_egress_is_limited_to_registry_dns_and_enabled_services():
    policy = one(named("redis-tls"), "NetworkPolicy")["spec"]
    ports = [p["port"] for rule in policy["egress"] for p in rule["ports"]]
    assert sorted(ports) == [53, 53, 6380]
    assert policy["ingress"][0]["from"] != [{"namespaceSelector": {}}]
    everything = one(named("everything"), "NetworkPolicy")["spec"]
    assert 4318 in [p["port"] for rule in everything["egress"] for p in rule.get("ports", [])]
    policy = one(named("gpu"), "NetworkPolicy", "valkey")["spec"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "bmt-server"


def test_valkey_is_durable_and_evicts_nothing():
    (container,) = one(named("gpu"), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    command = " ".join(container["args"])
    # Not `always`: Valkey would exit on a full disk. Servers wait for the disk by WAITAOF.
    for words in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert words in command


VALKEY = ("--set", "registry.url=", "--set", "valkey.enabled=true")


@pytest.mark.found
@pytest.mark.parametrize(
    ("flags", "bytes_"),
    [
        ([], int(0.6 * 4 * 2**30)),
        (["--set", "valkey.resources.limits.memory=500M"], 300_000_000),
        (["--set", "valkey.resources.limits.memory=1.5Gi"], int(0.9 * 2**30)),
        (["--set", "valkey.resources.limits.memory=1073741824"], int(0.6 * 2**30)),
        (["--set", "valkey.maxmemory=3Gi"], 3 * 2**30),
        (["--set-string", "valkey.maxmemory=200000000"], 200_000_000),
        (
            ["--set", "valkey.resources.limits=null", "--set", "valkey.maxmemory=2G"],
            2 * 10**9,
        ),
    ],
)
def test_valkey_refuses_uploads_before_it_runs_out_of_memory(flags, bytes_):
    done = template("-f", str(MINIMAL), *VALKEY, *flags)
    assert done.returncode == 0, done.stderr
    assert f"--maxmemory {bytes_} " in done.stdout


@pytest.mark.found
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "valkey.resources.limits=null"], ("valkey.maxmemory", "limits.memory")),
        (["--set", "valkey.maxmemory=3500Mi"], ("80 %", "4Gi")),
        (["--set", "valkey.maxmemory=lots"], ("lots", "4Gi")),
        (["--set", "valkey.size=7Gi"], ("valkey.size", "7Gi", "3 times")),
        (["--set", "valkey.resources.limits.memory=8Gi"], ("valkey.size", "10Gi")),
    ],
)
def test_valkey_without_room_is_refused(flags, words):
    done = template("-f", str(MINIMAL), *VALKEY, *flags)
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


def test_autoscaling_omits_the_replica_count():
    for name in ("keda", "hpa"):
        objects = named(name)
        assert "replicas" not in one(objects, "Deployment")["spec"]
    assert one(example(MINIMAL), "Deployment")["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "model.id="], "model.id"),
        (["--set", "registry.url="], "registry"),
        (["--set", "registry.url=http://x"], "pattern"),
        (["--set", "valkey.enabled=true"], "choose one"),
        (["--set", "masks.mode=fast"], "'auto', 'delta', 'scatter'"),
        (["--set", "masks.maxSparsity=1.5"], "maxSparsity"),
        (["--set", "maks.mode=auto"], "maks"),
        (["--set", "keda.enabled=true", "--set", "autoscaling.enabled=true"], "choose one"),
        (["--set", "inferencePool.enabled=true"], "endpointPicker"),
        (["--set", "image.digest=latest"], "pattern"),
    ],
)
def test_errors_name_the_wrong_value(flags, message):
    done = template("-f", str(MINIMAL), *flags)
    assert done.returncode != 0
    assert message in done.stderr


def test_alerts_pass_promtool():
    alerts = CHART / "files/alerts.yaml"
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(alerts)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_versions_agree():
    """One version in the package, the citation, the chart, the images' lines and the pages."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    assert server(example(MINIMAL))["image"] == f"bmt-adapters/server:{version}"
    pages = [*(ROOT / "deploy/docker").glob("*.Dockerfile"), ROOT / "README.md"]
    found = re.findall(
        r"bmt-adapters/(?:server|trainer):([\w.]+)",
        "".join(p.read_text() for p in (*pages, ROOT / "docs/operating/operate.md")),
    )
    assert len(found) >= 5
    assert set(found) == {version}


def test_registries_of_the_examples_are_urls_that_servers_read():
    kinds = set()
    for path in EXAMPLES:
        url = environment(server(example(path)))["BMT_REGISTRY"]
        if isinstance(url, str):
            kinds.add(RegistryAddress.parse(url).kind)
    assert kinds == {"server", "sentinel"}
    cluster = with_values(registry={"url": "redis+cluster://a,b:7000", "passwordSecret": "r"})
    assert RegistryAddress.parse(environment(server(cluster))["BMT_REGISTRY"]).kind == "cluster"
    assert environment(server(cluster))["BMT_REGISTRY_PASSWORD"]["secretKeyRef"]["name"] == "r"
    # Whoever sets both would not know which of them is used.
    both = {"url": "redis://r", "existingSecret": "whole", "passwordSecret": "r"}
    assert "choose one" in refused(registry=both)


@pytest.mark.found
def test_notes_lead_to_the_first_key():
    def notes(*arguments: str) -> str:
        done = helm("install", "masks", str(CHART), "--dry-run=client", "-n", "ns", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    first = notes("-f", str(CHART / "examples/first.yaml"))
    assert "get secret masks-admin" in first
    assert "masks and keys are lost" in first
    # A key that a log has shown once may be in any pod's, also before its restart.
    printed = notes("-f", str(MINIMAL), "--set", "secrets.generate=false")
    assert "--previous" in printed
    assert "deployment/masks | grep" not in printed


def test_queries_use_existing_metrics():
    sources = "".join(p.read_text() for p in (ROOT / "server/bmt_server/api").rglob("*.py"))
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]
    queries = [p["targets"][0]["expr"] for p in panels] + [r["expr"] for r in rules]
    named = {name for q in queries for name in re.findall(r"\bbmt_\w+", q)}
    assert len(named) > 10
    for name in named:
        assert f'"{re.sub("_(total|bucket)$", "", name)}"' in sources, name


def test_generated_files_are_current():
    script = ROOT / "tools/generate.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check", "chart"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
