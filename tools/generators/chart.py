"""Generated files of the Helm chart: README and schema from its values, dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from bmt_server.settings import Settings, options

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart"
ENUMS = {
    "accelerator": ["gpu", "cpu"],
    "monitoring.monitor": ["none", "service", "pod"],
    "trainingJob.method": ["sft", "dpo", "kto", "grpo", "sdft"],
    "logFormat": ["text", "json"],
    "tracing.protocol": ["grpc", "http/protobuf"],
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "service.type": ["ClusterIP", "LoadBalancer", "NodePort"],
}
# Values that are flags of the server, with the fields of its settings that bound them.
SETTINGS = {
    "masks.mode": "mask_mode",
    "masks.memoryMiB": "mask_memory_bytes",
    "masks.cacheGiB": "mask_cache_bytes",
    "masks.maxSparsity": "max_sparsity",
}
LEAST = {
    # No pod counts its waiting requests if there is none.
    **{
        f"{scaler}.{bound}Replicas": 1
        for scaler in ("autoscaling", "keda")
        for bound in ("min", "max")
    },
    **{"tensorParallelSize": 1, "backup.keep": 1, "probes.startupSeconds": 1},
}
# Objects whose content Kubernetes or the trainer defines.
FREE = {
    *(
        f"{owner}resources"
        for owner in ("", "valkey.", "trainingJob.", "worker.", "maintenance.", "backup.")
    ),
    *("podSecurityContext", "valkey.podSecurityContext", "containerSecurityContext"),
    "trainingJob.config",
}
# Members of lists: an object of Kubernetes has at least these fields, and the others are texts.
_NAMED = {"type": "object", "required": ["name"]}
_MOUNT = {"type": "object", "required": ["name", "mountPath"]}
_PEER = {"type": "object"}
_TEXT = {"type": "string", "minLength": 1}
MEMBERS = {
    **{f"{owner}extraVolumes": _NAMED for owner in ("", "trainingJob.")},
    **{f"{owner}extraVolumeMounts": _MOUNT for owner in ("", "trainingJob.")},
    **{f"{owner}extraEnv": _NAMED for owner in ("", "trainingJob.", "worker.")},
    **{"initContainers": _NAMED, "sidecars": _NAMED, "httpRoute.parentRefs": _NAMED},
    **{
        "ingress.hosts": _TEXT,
        "httpRoute.hostnames": _TEXT,
        "extraArgs": _TEXT,
        "worker.extraArgs": _TEXT,
    },
    **dict.fromkeys(("networkPolicy.from", "monitoring.from", "tolerations"), _PEER),
    "modelCache.accessModes": {
        "enum": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"]
    },
}
# Former names of values, accepted until 0.2.0.
FORMER = {"masks.maxDensity": "masks.maxSparsity"}
_QUANTITY = r"^[0-9]+([.][0-9]+)?([kKMGTP]|[KMGTP]i)?$"
_SCHEDULE = r"^(\S+( \S+){4}|@\w+)?$"
PATTERNS = {
    "fullnameOverride": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
    **dict.fromkeys(
        (
            "scratchSize",
            "worker.scratchSize",
            "sharedMemory",
            "modelCache.size",
            "valkey.size",
            "backup.size",
        ),
        _QUANTITY,
    ),
    **dict.fromkeys(("ingress.path", "httpRoute.path"), "^/"),
    **dict.fromkeys(
        ("maintenance.gcSchedule", "maintenance.fsckSchedule", "backup.schedule"),
        r"^(\S+( \S+){4}|@\w+)?$",
    ),
    "image.digest": "^(sha256:[0-9a-f]{64})?$",
    "registry.url": "^((rediss?|valkeys?)([+](sentinel|cluster))?://.+)?$",
}


def described(text: str) -> dict[str, str]:
    """The comment above each key of values.yaml, by the key's path; empty if it has none."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r" *# ?(.*)", line):
            comment.append(match[1])
        elif match := re.match(r"( *)([A-Za-z][\w]*):", line):
            depth = len(match[1])
            path = [*(p for p in path if p[0] < depth), (depth, match[2])]
            found[".".join(name for _, name in path)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def schema(values: Any, path: str = "") -> dict[str, Any]:
    """JSON schema of a value: its type and bounds; unknown keys are errors."""
    if path in SETTINGS:
        return _flag_schema(SETTINGS[path], values)
    if path in ENUMS:
        return {"enum": ENUMS[path]}
    if isinstance(values, dict) and values and path not in FREE:
        properties = {k: schema(v, f"{path}.{k}".lstrip(".")) for k, v in values.items()}
        for former, now in FORMER.items():
            folder, _, name = former.rpartition(".")
            if folder == path:
                properties[name] = properties[now.rpartition(".")[2]]
        if not path:
            properties["global"] = {"type": "object"}  # Helm passes it to every chart
        return {"type": "object", "properties": properties, "additionalProperties": False}
    kinds: dict[type, dict[str, Any]] = {
        bool: {"type": "boolean"},
        int: {"type": "integer", "minimum": LEAST.get(path, 0)},
        float: {"type": "number", "minimum": 0},
        str: {"type": "string"},
        list: {"type": "array"},
        dict: {"type": "object"},
    }
    kind = kinds[type(values)]
    if path in MEMBERS:
        kind["items"] = MEMBERS[path]
    if path in PATTERNS:
        kind["pattern"] = PATTERNS[path]
    if path == "valkey.maxmemory":
        return {"type": ["string", "number"]}
    if path == "podDisruptionBudget.maxUnavailable":
        return {"type": ["integer", "string"]}
    if path in ("autoscaling.queue", "keda.queue", "keda.evictions"):
        return {"type": "number", "minimum": 0}
    return kind


def _flag_schema(name: str, default: Any) -> dict[str, Any]:
    """JSON schema of a flag of the server; `default` must be the server's own."""
    option, kind = next((o, kind) for field, o, kind in options() if field == name)
    if option.to_flag(getattr(Settings, name)) != default:
        raise SystemExit(f"values.yaml: {option.flag} is {default}, and not so in settings.py")
    return option.flag_schema(kind)


def readme(values: dict[str, Any], comments: dict[str, str]) -> str:
    """README of the chart: its head, and a table of its values."""
    rows = [
        f"| `{path}` | `{json.dumps(value)}` | {comments.get(path, '')} |"
        for path, value in _leaves(values)
    ]
    head = (CHART / "README.head.md").read_text()
    return f"{head}\n| value | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _leaves(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value and name not in FREE:
            found += _leaves(value, name)
        else:
            found.append((name, value))
    return found


def _in_namespace(query: str) -> str:
    """The query, limited to the dashboard's namespace and job."""
    label = 'namespace="$namespace",job=~"$job"'
    return query.replace("{}", f"{{{label}}}").replace("{kind", f"{{{label},kind")


def dashboard() -> str:
    """The dashboard as Grafana's JSON, two panels per row."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": i + 1,
            "type": "timeseries",
            "title": panel["title"],
            "datasource": source,
            "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
            "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
            "options": {"tooltip": {"mode": "multi"}},
            "targets": [
                {
                    "refId": "A",
                    "datasource": source,
                    "expr": _in_namespace(panel["query"]),
                    "legendFormat": panel["legend"],
                }
            ],
        }
        for i, panel in enumerate(yaml.safe_load((CHART / "panels.yaml").read_text()))
    ]
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus"},
        {
            "name": "namespace",
            "type": "query",
            "datasource": source,
            "query": "label_values(bmt_worker_info, namespace)",
            "refresh": 2,
        },
        {
            "name": "job",
            "type": "query",
            "datasource": source,
            "query": 'label_values(bmt_worker_info{namespace="$namespace"}, job)',
            "refresh": 2,
            "includeAll": True,
        },
    ]
    board = {
        "uid": "bmt-server",
        "title": "bmt-server",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(board, indent=1) + "\n"


def pages() -> dict[Path, str | None]:
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    top = {"$schema": "http://json-schema.org/draft-07/schema#", **schema(values)}
    return {
        CHART / "README.md": readme(values, described(text)),
        CHART / "values.schema.json": json.dumps(top, indent=1) + "\n",
        CHART / "files" / "dashboard.json": dashboard(),
    }
