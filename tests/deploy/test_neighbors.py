"""Files of examples/neighbors: fields, ports, flags and names that fit the server and the chart.

They run with the real programs in tests/system/neighbors. Fields of custom resources are those of
KServe 0.21 and llm-d's router 0.10, in our own words.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from bmt_server.settings import options

from tests.support.deploy.chart import CHART, VERSION, example, one, parsed, server
from tests.support.programs import ROOT
from tests.support.scenarios.neighbors import EXAMPLES, VERSIONS, settings_in

FILES = sorted(EXAMPLES.iterdir())
DOCS = (ROOT / "docs/serving/neighbors.md").read_text()
#: Flags of vLLM that the files use in addition to the server's own.
VLLM_FLAGS = {"--host", "--port", "--served-model-name", "--shutdown-timeout"}
#: Fields of a runtime, those of lists by name; a pod's own are Kubernetes' schema's.
RUNTIME = {
    "annotations": None,
    "supportedModelFormats": {"name", "version", "autoSelect", "priority"},
    "multiModel": None,
    "protocolVersions": None,
    "containers": None,
    "volumes": None,
}
PREDICTOR = {"minReplicas", "maxReplicas", "model", "serviceAccountName", "tolerations"}
MODEL = {"modelFormat", "runtime", "storageUri", "resources", "args", "env"}
ROUTER = {
    "": {"router", "httpRoute"},
    "router": {"modelServers", "inferencePool", "inferenceObjectives", "epp"},
    "router.modelServers": {"type", "protocol", "matchLabels", "targetPorts"},
    "router.inferencePool": {"create", "failureMode"},
    "router.epp": {"pluginsConfigFile", "pluginsCustomConfig"},
    "httpRoute": {"create", "requestTimeout"},
}
PLUGINS = {
    "metrics-data-source": {"scheme", "path", "port", "interval"},
    "core-metrics-extractor": set[str](),
    "lora-affinity-scorer": set[str](),
    "queue-scorer": set[str](),
    "kv-cache-utilization-scorer": set[str](),
    "prefix-cache-scorer": set[str](),
    "max-score-picker": set[str](),
}


def test_every_file_has_its_line_in_the_docs():
    """With the version that the scenarios install, where they install one."""
    for file in FILES:
        assert f"examples/neighbors/{file.name}" in DOCS
    for requirement in VERSIONS.values():
        name, _, version = requirement.partition("==")
        assert f"{name.partition('[')[0]} {version}" in DOCS


@pytest.mark.parametrize("file", [f for f in FILES if f.suffix == ".py"], ids=lambda f: f.stem)
def test_scripts_are_python(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_litellm_passes_names_and_keys_on():
    config = yaml.safe_load((EXAMPLES / "litellm.yaml").read_text())
    (model,) = config["model_list"]
    prefix = model["model_name"].removesuffix("*")
    assert model["model_name"] == f"{prefix}*"
    parameters = model["litellm_params"]
    assert parameters["model"] == "openai/*"
    assert parameters["configurable_clientside_auth_params"] == ["api_key"]
    # No secret, and no fallback to another model than the one that was asked for.
    for value in (parameters["api_key"], config["general_settings"]["master_key"]):
        assert value.startswith("os.environ/")
    assert not any("fallback" in key for part in config.values() for key in part)


def test_open_webui_sends_what_the_server_takes():
    settings = settings_in(EXAMPLES / "open_webui.env")
    assert settings["OPENAI_API_BASE_URL"].endswith("/v1")
    capabilities = json.loads(settings["DEFAULT_MODEL_METADATA"])["capabilities"]
    assert capabilities["builtin_tools"] is False


def test_kserve_runs_the_image_as_the_server_is_run():
    runtime, service = parsed((EXAMPLES / "kserve.yaml").read_text())
    assert (runtime["apiVersion"], runtime["kind"]) == (
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
    )
    spec = runtime["spec"]
    assert spec.keys() <= RUNTIME.keys()
    for found in spec["supportedModelFormats"]:
        assert found.keys() <= RUNTIME["supportedModelFormats"]
    kubernetes_validate.validate(pod_of(spec), VERSION, strict=True)
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert container["image"] == f"bmt-adapters/server:{chart['appVersion']}-cpu"

    command, model, *flags = container["args"]
    assert (command, model) == ("serve", "/mnt/models")
    known = VLLM_FLAGS | {option.flag for _, option, _ in options() if option.flag}
    given = dict(flag.split("=", 1) for flag in flags)
    assert given.keys() <= known
    (port,) = [p["containerPort"] for p in container["ports"]]
    assert str(port) == given["--port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port
    assert spec["annotations"]["prometheus.kserve.io/port"] == given["--metrics-port"]
    # As the chart: the root is read-only, and the image writes to these folders.
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    assert mounts == {"/scratch", "/tmp", "/dev/shm"}
    grace_s = 30
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep + int(given["--shutdown-timeout"]) < grace_s

    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    predictor = service["spec"]["predictor"]
    assert service["spec"].keys() == {"predictor"}
    assert predictor.keys() <= PREDICTOR
    assert predictor["model"].keys() <= MODEL
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    formats = [f["name"] for f in spec["supportedModelFormats"]]
    assert predictor["model"]["modelFormat"]["name"] in formats


def pod_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The pod that KServe makes of a runtime, as far as the runtime says."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "runtime"},
        "spec": {"containers": spec["containers"], "volumes": spec["volumes"]},
    }


def test_llm_d_picks_pods_of_the_chart():
    values = yaml.safe_load((EXAMPLES / "llm_d.yaml").read_text())
    for path, fields in ROUTER.items():
        part = values
        for name in filter(None, path.split(".")):
            part = part[name]
        assert part.keys() <= fields, path
    router = values["router"]
    pods = example(CHART / "examples" / "gateway.yaml")
    labels = one(pods, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert router["modelServers"]["matchLabels"].items() <= labels.items()
    # The picker reads vLLM's names of metrics where this label says so.
    assert labels["llm-d.ai/engine-type"] == router["modelServers"]["type"] == "vllm"
    ports = {p["name"]: p["containerPort"] for p in server(pods)["ports"]}
    assert [p["number"] for p in router["modelServers"]["targetPorts"]] == [ports["http"]]

    config = yaml.safe_load(
        router["epp"]["pluginsCustomConfig"][router["epp"]["pluginsConfigFile"]]
    )
    assert (config["apiVersion"], config["kind"]) == ("llm-d.ai/v1alpha1", "EndpointPickerConfig")
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}
    for plugin, parameters in plugins.items():
        assert parameters.keys() <= PLUGINS[plugin]
    # Without a key, where the chart serves /metrics alone.
    assert plugins["metrics-data-source"]["port"] == ports["metrics"]
    (profile,) = config["schedulingProfiles"]
    assert {p["pluginRef"] for p in profile["plugins"]} <= plugins.keys()
    assert "lora-affinity-scorer" in {p["pluginRef"] for p in profile["plugins"]}


def test_commands_of_comments_name_files_that_exist():
    for file in FILES:
        for path in re.findall(r"(?:examples|deploy)/[\w./-]+\.\w+", file.read_text()):
            assert (ROOT / path).exists(), f"{file.name}: {path}"
