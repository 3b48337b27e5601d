"""The Helm chart, rendered: objects, their pods, and the schemas of Kubernetes' API."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.support.programs import ROOT, tool

CHART = ROOT / "deploy" / "chart"
EXAMPLES = sorted(CHART.glob("examples/*.yaml"))
MINIMAL = CHART / "examples/minimal.yaml"
# Custom resources, whose schemas are not available here.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "InferencePool"}
FOREIGN |= {"HTTPRoute", "BackendTLSPolicy"}
VERSION = "1.35"


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A loader that refuses a key given twice, as Kubernetes' API does."""


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    merge = "tag:yaml.org,2002:merge"
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != merge]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"{twice} twice in {node.start_mark}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [tool("helm"), *arguments]
    # No clusters or plugins of the user.
    environment = {**os.environ, "KUBECONFIG": "/dev/null", "HELM_PLUGINS": "/nonexistent"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def template(*arguments: str, release: str = "masks") -> subprocess.CompletedProcess[str]:
    return helm("template", release, str(CHART), "--namespace", "inference", *arguments)


def parsed(text: str) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(text, StrictLoader) if found]


def render(*arguments: str, release: str = "masks") -> list[dict[str, Any]]:
    done = template(*arguments, release=release)
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


def refusal(*arguments: str) -> str:
    """The message of values that the chart refuses."""
    done = template(*arguments)
    assert done.returncode != 0, "rendered"
    return done.stderr


def settings(values: dict[str, Any]) -> list[str]:
    """Arguments of helm for values of any type."""
    return [w for name, v in values.items() for w in ("--set-json", f"{name}={json.dumps(v)}")]


def with_values(**values: Any) -> list[dict[str, Any]]:
    """The minimal example with more values."""
    return render("-f", str(MINIMAL), *settings(values))


def refused(**values: Any) -> str:
    """The message of more values that the chart refuses."""
    return refusal("-f", str(MINIMAL), *settings(values))


@functools.cache
def example(path: Path) -> list[dict[str, Any]]:
    return render("-f", str(path))


def named(name: str) -> list[dict[str, Any]]:
    """Objects of an example by its name."""
    return example(CHART / f"examples/{name}.yaml")


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and name in o["metadata"]["name"]]
    return found


def pod_templates(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Labels and spec of every pod that the objects make."""
    for found in objects:
        spec = found.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if found["kind"] == "Pod":
            yield found["metadata"].get("labels", {}), spec
        elif isinstance(spec, dict) and "template" in spec:
            yield spec["template"]["metadata"]["labels"], spec["template"]["spec"]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Specs of all pods that the objects make."""
    return [spec for _, spec in pod_templates(objects)]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def server_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return one(objects, "Deployment")["spec"]["template"]["spec"]


def server(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = [c for c in server_pod(objects)["containers"] if c["name"] == "server"]
    return container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container.get("env", [])}


def validate(objects: list[dict[str, Any]]) -> None:
    """Kubernetes' own schemas, strictly."""
    for found in objects:
        if found["kind"] not in FOREIGN:
            kubernetes_validate.validate(found, VERSION, strict=True)
