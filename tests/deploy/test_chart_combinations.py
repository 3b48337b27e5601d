"""Generated combinations of values: Kubernetes accepts each, or the chart names what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import yaml
from hypothesis import HealthCheck, given, settings

from tests.support.deploy.chart import (
    CHART,
    containers,
    environment,
    parsed,
    pod_templates,
    server,
    template,
    validate,
)

SIZES = st.sampled_from(["1Gi", "10Gi", "500M", "2Ti", "100Gi"])
NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
FLAGS = st.booleans()
MASKS = st.from_regex(r"[a-z0-9]{1,40}([._-][a-z0-9]{1,20}){0,3}", fullmatch=True)
SECRET = st.sampled_from(["", "given"])
PEERS = st.sampled_from([[], [{"namespaceSelector": {}}]])
# Values that decide what is rendered; each may be left out.
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "fullnameOverride": NAMES,
    "model.id": st.sampled_from(["a/b", "/models/x", "HuggingFaceTB/SmolLM2-135M-Instruct"]),
    "model.revision": st.sampled_from(["", "main", "v2"]),
    "model.servedName": st.sampled_from(["", "llama: 3", "#x"]),
    "model.maxLength": st.integers(0, 100_000),
    "accelerator": st.sampled_from(["cpu", "gpu"]),
    "replicas": st.integers(0, 5),
    "tensorParallelSize": st.integers(1, 8),
    "strategy": st.sampled_from(
        [
            {"type": "Recreate"},
            {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}},
        ]
    ),
    "extraArgs": st.sampled_from([["--dtype=half"], ["--nnodes=2"], ["--port=1"], ["-dp=2"]]),
    "extraEnv": st.sampled_from([[{"name": "HOME", "value": "/x"}], [{"name": "A", "value": "1"}]]),
    "extraVolumes": st.sampled_from([[{"name": "x", "emptyDir": {}}]]),
    "sidecars": st.sampled_from([[{"name": "x", "image": "x"}]]),
    "podLabels": st.sampled_from([{"team": "a"}, {"helm.sh/chart": "mine"}]),
    "podSecurityContext": st.sampled_from([{"runAsUser": None, "fsGroup": None}]),
    "logFormat": st.sampled_from(["text", "json"]),
    "tracing.endpoint": st.sampled_from(["http://collector:4317"]),
    "masks.cacheGiB": st.sampled_from([0.5, 10, 100]),
    "scratchSize": SIZES,
    "registry.url": st.sampled_from(["redis://r:6379", "redis+cluster://a,b:7000"]),
    "registry.existingSecret": SECRET,
    "registry.passwordSecret": SECRET,
    "registry.caSecret": SECRET,
    "valkey.enabled": FLAGS,
    "valkey.persistent": FLAGS,
    "valkey.size": SIZES,
    "valkey.existingSecret": SECRET,
    "auth.existingSecret": SECRET,
    "secrets.generate": FLAGS,
    "tls.existingSecret": SECRET,
    "privateCA.configMap": SECRET,
    "huggingface.existingSecret": SECRET,
    "huggingface.download": FLAGS,
    "modelCache.enabled": FLAGS,
    "modelCache.existingClaim": SECRET,
    "modelCache.accessModes": st.lists(
        st.sampled_from(["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]), min_size=1, unique=True
    ),
    "modelCache.volume": st.sampled_from([{"nfs": {"server": "s", "path": "/"}}]),
    "service.type": st.sampled_from(["ClusterIP", "LoadBalancer", "NodePort"]),
    "service.port": st.sampled_from([80, 8000, 9400]),
    "ingress": st.fixed_dictionaries({"enabled": FLAGS, "hosts": st.lists(NAMES, max_size=2)}),
    "httpRoute": st.fixed_dictionaries(
        {"enabled": FLAGS, "parentRefs": st.sampled_from([[], [{"name": "g"}]])}
    ),
    "networkPolicy.enabled": FLAGS,
    "networkPolicy.from": PEERS,
    "podDisruptionBudget.maxUnavailable": st.sampled_from([1, "50%"]),
    "autoscaling.enabled": FLAGS,
    "keda.enabled": FLAGS,
    "keda.minReplicas": st.integers(1, 10),
    "monitoring.monitor": st.sampled_from(["none", "service", "pod"]),
    "monitoring.port": st.sampled_from([0, 9400]),
    "monitoring.existingSecret": SECRET,
    "monitoring.from": PEERS,
    "monitoring.rules": FLAGS,
    "monitoring.dashboard": FLAGS,
    "monitoring.labels": st.sampled_from([{"release": "p"}, {"helm.sh/chart": "mine"}]),
    "inferencePool": st.fixed_dictionaries({"enabled": FLAGS, "endpointPicker": SECRET}),
    "trainingJob.enabled": FLAGS,
    "trainingJob.mask": MASKS,
    "trainingJob.method": st.sampled_from(["sft", "grpo", "sdft"]),
    "trainingJob.config": st.sampled_from([{"steps": 1}, {"dataset": "a: b # c"}, {"model": "x"}]),
    "trainingJob.ttlSeconds": st.sampled_from([0, 60]),
    "maintenance.gcSchedule": st.sampled_from(["@daily", "*/5 * * * *"]),
    "maintenance.fsckSchedule": st.sampled_from(["@weekly"]),
    "backup.schedule": st.sampled_from(["", "@daily"]),
    "backup.keep": st.integers(1, 30),
    "nodeSelector": st.sampled_from([{"a": "b"}]),
    "affinity": st.sampled_from([{"podAntiAffinity": {}}, {"nodeAffinity": {}}]),
    "runtimeClassName": st.sampled_from(["nvidia"]),
}  # fmt: skip
# Most combinations of all values are refused by one of them, so each takes a few.
COMBINATIONS = st.lists(st.sampled_from(sorted(CHOICES)), max_size=14, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CHOICES[name] for name in names})
)
REFUSAL = re.compile(r"execution error at \(\S+\): ([a-z][\w.]*)(?:[:]| and )")
RENDERED: Counter[bool] = Counter()


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split(".")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return values


def _known(path: str) -> bool:
    values: Any = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return values == {}  # an object that Kubernetes defines, such as strategy
        values = values[name]
    return True


def check(objects: list[dict[str, Any]]) -> None:
    """Refusals of the API server, the scheduler or a controller, beyond the schemas."""
    validate(objects)
    named = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(named)) == len(named)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", n) and len(n) < 64 for _, n in named)
    claims = {n for kind, n in named if kind == "PersistentVolumeClaim"} | {"given"}
    for labels, spec in pod_templates(objects):
        assert all(re.fullmatch(r"\S{0,63}", str(value)) for value in labels.values())
        volumes = [v["name"] for v in spec.get("volumes", [])] + (
            ["data"] if labels["app.kubernetes.io/name"] == "valkey" else []
        )
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "given")
            assert claim in claims
        for container in containers(spec):
            mounts = [m["mountPath"] for m in container.get("volumeMounts", [])]
            assert len(set(mounts)) == len(mounts)
            assert {m["name"] for m in container.get("volumeMounts", [])} <= set(volumes)
            names = [e["name"] for e in container.get("env", [])]
            assert len(set(names)) == len(names)
            assert "" not in [
                e["secretKeyRef"]["name"]
                for e in environment(container).values()
                if isinstance(e, dict)
            ]
    spec = server(objects)
    tls = "--ssl-certfile=/etc/bmt/tls/tls.crt" in spec["args"]
    assert spec["livenessProbe"]["httpGet"]["scheme"] == ("HTTPS" if tls else "HTTP")
    scaled = {kind for kind, _ in named} & {"HorizontalPodAutoscaler", "ScaledObject"}
    monitors = {kind for kind, _ in named} & {"ServiceMonitor", "PodMonitor"}
    assert not scaled or monitors


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(combination=COMBINATIONS)
def _try(folder: Path, combination: dict[str, Any]) -> None:
    # A registry, unless the combination says something about it.
    if not any(name.startswith(("registry.", "valkey.")) for name in combination):
        combination = {**combination, "valkey.enabled": True}
    values = folder / "values.yaml"
    # JSON: Helm reads a bare n of YAML as false.
    values.write_text(json.dumps(nested(combination)))
    done = template("-f", str(values))
    RENDERED[done.returncode == 0] += 1
    if done.returncode == 0:
        check(parsed(done.stdout))
        return
    named = REFUSAL.search(done.stderr)
    assert named is not None, f"{combination}: {done.stderr}"
    assert _known(named[1]), named[1]


def test_combinations_render_to_what_kubernetes_accepts_or_are_refused_by_name(tmp_path):
    RENDERED.clear()
    _try(tmp_path)
    # Neither half is empty, or the values are not those that decide.
    assert min(RENDERED[True], RENDERED[False]) >= 6, RENDERED
