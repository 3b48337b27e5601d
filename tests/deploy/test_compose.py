"""deploy/compose.yaml: its schema, and that all that it names exists and fits the chart."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from tests.support.deploy import compose
from tests.support.deploy.chart import CHART, named, server
from tests.support.programs import ROOT, tool

PROFILES = {
    p: compose.project(compose.variables(COMPOSE_PROFILES=f"{p},tools")) for p in ("cpu", "gpu")
}
SERVICES = [(p, name) for p, project in PROFILES.items() for name in project["services"]]
DOCKERFILES = {p: ROOT / f"deploy/docker/server.{p}.Dockerfile" for p in PROFILES}
each_service = pytest.mark.parametrize(("profile", "name"), SERVICES)


def _scripts_and_configurations() -> str:
    return "\n".join(
        (compose.FOLDER / c["file"]).read_text() for c in compose.raw()["configs"].values()
    )


@pytest.mark.parametrize("project", [compose.raw(), *PROFILES.values()], ids=["raw", *PROFILES])
def test_compose_accepts_the_file(project):
    validator = jsonschema.validators.validator_for(get_builtin_schema("vendor.compose-spec"))
    validator(get_builtin_schema("vendor.compose-spec")).validate(project)
    wrong = json.loads(json.dumps(project))
    wrong["services"]["valkey"]["memory"] = "4g"
    with pytest.raises(jsonschema.ValidationError):
        validator(get_builtin_schema("vendor.compose-spec")).validate(wrong)


def test_each_profile_has_one_server_and_the_same_rest():
    cpu, gpu = (set(PROFILES[p]["services"]) for p in ("cpu", "gpu"))
    assert cpu - gpu == {"server-cpu"}
    assert gpu - cpu == {"server-gpu"}
    apart = {"image", "build", "environment", "profiles", "deploy"}
    servers = (PROFILES[p]["services"][f"server-{p}"] for p in ("cpu", "gpu"))
    first, second = ({k: v for k, v in one.items() if k not in apart} for one in servers)
    assert first == second
    (device,) = PROFILES["gpu"]["services"]["server-gpu"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert device == {"driver": "nvidia", "count": "1", "capabilities": ["gpu"]}


def test_variables_are_those_of_the_example():
    example = re.findall(r"^(\w+)=", compose.EXAMPLE.read_text(), re.MULTILINE)
    assert set(example) == compose.names_of_variables()
    # A default in the file is the example's.
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", compose.FILE.read_text()):
        assert compose.variables()[name] == default, name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("VALKEY_PASSWORD", "secrets.sh"),
        ("GRAFANA_PASSWORD", "secrets.sh"),
        ("COMPOSE_PROFILES", "cpu or gpu"),
    ],
)
def test_an_unset_variable_ends_the_start_with_the_fix(name, hint):
    with pytest.raises(compose.Missing, match=hint):
        compose.project(compose.variables(**{name: ""}))


@each_service
def test_all_that_a_service_names_exists(profile, name):
    project = PROFILES[profile]
    service = project["services"][name]
    for path in compose.config_files(project, service).values():
        assert path.is_file(), path
    for volume, _ in compose.mounts(service).values():
        assert volume in project["volumes"]
    assert set(service.get("networks", [])) <= project["networks"].keys()
    everywhere = PROFILES["cpu"]["services"] | PROFILES["gpu"]["services"]
    for other, how in service.get("depends_on", {}).items():
        assert other in everywhere
        assert other in project["services"] or how["required"] is False
        assert how["condition"] != "service_healthy" or "healthcheck" in everywhere[other]


def test_nothing_is_declared_that_no_service_uses():
    services = [s for project in PROFILES.values() for s in project["services"].values()]
    used = {
        "configs": {c["source"] for s in services for c in s.get("configs", [])},
        "volumes": {volume for s in services for volume, _ in compose.mounts(s).values()},
        "networks": {n for s in services for n in s.get("networks", ["default"])},
    }
    for kind, names in used.items():
        assert compose.raw()[kind].keys() == names


def _host(profile, url):
    """The service that a URL reaches, its port, and its networks."""
    parts = urlsplit(url)
    for name, service in PROFILES[profile]["services"].items():
        networks = service.get("networks", ["default"])
        aliases = {
            a
            for n in networks
            if isinstance(networks, dict)
            for a in networks[n].get("aliases", [])
        }
        if parts.hostname in aliases | {name}:
            return name, parts.port, set(networks)
    raise AssertionError(f"{url}: no service of that name")


@pytest.mark.parametrize("profile", PROFILES)
def test_services_reach_each_other(profile):
    services = PROFILES[profile]["services"]
    registry = services[f"server-{profile}"]["environment"]["BMT_REGISTRY"]
    name, port, networks = _host(profile, registry)
    assert (name, port) == ("valkey", 6379)
    assert networks == {"registry"}  # no other service than the server's is there
    near = [name for name, one in services.items() if "registry" in one.get("networks", [])]
    assert near == [f"server-{profile}", "valkey", "backup", "restore"]
    for name in ("backup", "restore"):
        assert services[name]["environment"]["HOST"] == "valkey"
    scrape = yaml.safe_load((compose.FOLDER / "compose/prometheus.yaml").read_text())[
        "scrape_configs"
    ]
    (target,) = scrape[0]["static_configs"][0]["targets"]
    name, port, networks = _host(profile, f"http://{target}")
    assert name == f"server-{profile}"
    assert f"--port={port}" in services[name]["command"]
    assert "default" in networks
    (source,) = yaml.safe_load((compose.FOLDER / "compose/grafana/datasource.yaml").read_text())[
        "datasources"
    ]
    name, port, _ = _host(profile, source["url"])
    assert f"--web.listen-address=0.0.0.0:{port}" in services[name]["command"]


@each_service
def test_images_are_pinned_and_those_of_the_chart(profile, name):
    image = PROFILES[profile]["services"][name]["image"]
    assert re.search(r":v?\d+\.\d+\.\d+(-[\w]+)?$", image), f"{image} is not pinned"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    ours = {
        **dict.fromkeys(("valkey", "backup", "restore"), values["valkey"]["image"]),
        "server-cpu": f"{values['image']['repository']}:{version}-cpu",
        "server-gpu": f"{values['image']['repository']}:{version}",
    }
    assert image == ours.get(name, image)
    if "build" in (service := PROFILES[profile]["services"][name]):
        folder = (compose.FOLDER / service["build"]["context"]).resolve()
        assert folder / service["build"]["dockerfile"] == DOCKERFILES[profile]


@each_service
def test_services_have_few_rights_and_bounds(profile, name):
    service = PROFILES[profile]["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    # Those of a profile of their own run once, by hand.
    once = service.get("profiles") == ["tools"]
    assert service["restart"] == ("no" if once else "unless-stopped")
    assert once or service["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "mem_limit" in service
    assert all("size=" in folder for folder in service["tmpfs"])
    # The server's user is its image's.
    user = (
        service.get("user")
        or re.findall(r"^USER (\S+)", DOCKERFILES[profile].read_text(), re.MULTILINE)[-1]
    )
    assert int(user.partition(":")[0]) > 0


def test_valkey_refuses_uploads_before_the_kernel_ends_it():
    valkey = PROFILES["cpu"]["services"]["valkey"]
    limit, bound = (
        compose.size(valkey["mem_limit"]),
        compose.size(valkey["environment"]["MAXMEMORY"]),
    )
    assert 0.5 * limit < bound <= 0.6 * limit


@pytest.mark.parametrize("profile", PROFILES)
def test_folders_of_the_servers_volumes_belong_to_its_user(profile):
    """An empty volume takes the owner of the folder in the image."""
    text = DOCKERFILES[profile].read_text()
    made = re.findall(r"install -d -o bmt -g \S+(?: -m \d+)?((?: /\w+)+)", text)
    volumes = compose.mounts(PROFILES[profile]["services"][f"server-{profile}"])
    assert volumes.keys() == set(" ".join(made).split())


@pytest.mark.parametrize("profile", PROFILES)
def test_flags_of_the_server_are_the_charts(profile):
    def flags(words):
        return {word.partition("=")[0] for word in words if word.startswith("--")}

    command = shlex.split(PROFILES[profile]["services"][f"server-{profile}"]["command"])
    assert command[:2] == ["serve", compose.variables()["BMT_MODEL"]]
    chart = flags(server(named("tensor-parallel"))["args"])
    assert flags(command) <= chart
    given = {
        "BMT_MODEL": "/models/mine",
        "BMT_FLAGS": "--max-model-len=64 --served-model-name 'a b'",
    }
    project = compose.project(compose.variables(COMPOSE_PROFILES=profile, **given))
    words = shlex.split(project["services"][f"server-{profile}"]["command"])
    assert words[1] == "/models/mine"
    assert words[-3:] == ["--max-model-len=64", "--served-model-name", "a b"]


def test_promtool_accepts_the_configuration():
    path = compose.FOLDER / "compose/prometheus.yaml"
    command = [tool("promtool"), "check", "config", "--syntax-only", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = compose.config_files(PROFILES["cpu"], PROFILES["cpu"]["services"]["prometheus"])
    configuration = yaml.safe_load(path.read_text())
    assert files["/etc/prometheus/prometheus.yaml"] == path
    (rules,) = configuration["rule_files"]
    assert files[rules] == CHART / "files/alerts.yaml"
    (job,) = configuration["scrape_configs"]
    # The rules' jobs, and the labels that they and the dashboard group by.
    assert job["job_name"].startswith("bmt")
    assert job["static_configs"][0]["labels"].keys() == {"namespace", "pod"}
    folder, _, _ = job["authorization"]["credentials_file"].rpartition("/")
    assert compose.mounts(PROFILES["cpu"]["services"]["prometheus"])[folder] == ("keys", True)


def test_grafana_finds_its_source_and_its_dashboard():
    service = PROFILES["cpu"]["services"]["grafana"]
    files = compose.config_files(PROFILES["cpu"], service)
    folders = {path.rpartition("/")[0]: file for path, file in files.items()}
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(folders[f"{provisioning}/datasources"].read_text())["datasources"]
    assert source["isDefault"] is True
    (provider,) = yaml.safe_load(folders[f"{provisioning}/dashboards"].read_text())["providers"]
    dashboard = folders[provider["options"]["path"]]
    assert dashboard == CHART / "files/dashboard.json"
    # The dashboard's variable takes a source of this type.
    (variable,) = [
        v
        for v in json.loads(dashboard.read_text())["templating"]["list"]
        if v["type"] == "datasource"
    ]
    assert variable["query"] == source["type"]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert files[home] == dashboard
