"""Jobs of the chart: a training run that happens once, and schedules of maintenance."""

from __future__ import annotations

import json
import re
from typing import Any

import bmt_core
import pytest
import yaml

from tests.support.deploy.chart import (
    CHART,
    environment,
    named,
    one,
    refusal,
    render,
    template,
    validate,
)
from tests.support.deploy.scripts import programs, run_script

BASE = ("--set", "valkey.enabled=true", "--set", "trainingJob.enabled=true")


def training(*settings: str) -> dict[str, Any]:
    words = [word for setting in settings for word in ("--set-json", setting)]
    return one(render(*BASE, *words), "Job", "train")


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def run_of(job: dict[str, Any]) -> str:
    return str(environment(trainer(job))["RUN"])


@pytest.mark.found
def test_an_upgrade_changes_no_job_and_removes_none():
    """A Job's template is immutable, and a Job that ends and is removed would be made again."""
    first, same = training(), training('podAnnotations={"a": "b"}', "replicas=3")
    assert first == same
    assert "ttlSecondsAfterFinished" not in first["spec"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] not in yaml.safe_dump(first["spec"]["template"]["metadata"])
    others = [
        training('trainingJob.config={"steps": 7}'),
        training('trainingJob.method="grpo"'),
        training('trainingJob.image="mine:2"'),
        training('trainingJob.resources={"limits": {"nvidia.com/gpu": 2}}'),
        training('model.id="a/b"'),
        training('tolerations=[{"operator": "Exists"}]'),
        training('trainingJob.extraEnv=[{"name": "A", "value": "b"}]'),
    ]
    names = [job["metadata"]["name"] for job in (first, *others)]
    assert len(set(names)) == len(names)
    # Another image or node trains the same mask: its Job finds the upload of the former one.
    assert [run_of(job) == run_of(first) for job in others] == [
        *(False, False, True, True, False, True, True)
    ]


@pytest.mark.found
@pytest.mark.parametrize(
    "mask", ["a", "math.v1", "a_b", "x" * 128, "0", "9.9", "a-b_c.d" * 12, "1.2-3_4"]
)
def test_any_mask_name_makes_legal_objects(mask):
    bmt_core.validate_name(mask)
    objects = render(*BASE, "--set-string", f"trainingJob.mask={mask}", release="r" * 53)
    validate(objects)
    job = one(objects, "Job", "train")
    assert len(job["metadata"]["name"]) <= 63
    assert environment(trainer(job))["MASK"] == mask
    one(objects, "ConfigMap", job["metadata"]["name"])


def test_names_that_no_mask_has_are_refused():
    for mask in ("A", "a..b", "-a", "a/b", ""):
        done = template(*BASE, "--set-string", f"trainingJob.mask={mask}")
        assert "trainingJob.mask" in done.stderr, mask


@pytest.mark.found
def test_the_job_reaches_gated_models_data_and_gpus():
    values = {
        "huggingface": {"existingSecret": "hub"},
        "image": {"pullSecrets": ["pull", {"name": "pull2"}]},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "runtimeClassName": "nvidia",
        "modelCache": {"existingClaim": "models", "accessModes": ["ReadWriteMany"]},
        "trainingJob": {
            "existingSecret": "uploader",
            "resources": {"limits": {"nvidia.com/gpu": 4}},
            "extraVolumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "extraVolumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
    }
    job = training(*(f"{name}={json.dumps(value)}" for name, value in values.items()))
    spec, container = job["spec"]["template"]["spec"], trainer(job)
    variables = environment(container)
    assert variables["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert variables["HF_HUB_OFFLINE"] == "0"
    assert variables["BMT_API_KEY"] == {"secretKeyRef": {"name": "uploader", "key": "api-key"}}
    assert spec["imagePullSecrets"] == [{"name": "pull"}, {"name": "pull2"}]
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["runtimeClassName"] == "nvidia"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert mounts["/data"] == "data"
    claims = {v["name"]: v.get("persistentVolumeClaim") for v in spec["volumes"]}
    assert claims["models"] == {"claimName": "models"}
    assert claims["data"] == {"claimName": "data"}
    # The server's disk may be attached to another node.
    alone = training("modelCache.enabled=true")
    models = [v for v in alone["spec"]["template"]["spec"]["volumes"] if v["name"] == "models"]
    assert models == [{"name": "models", "emptyDir": {}}]


def test_settings_that_the_job_cannot_keep_are_refused():
    def message(*settings: str) -> str:
        words = [word for setting in settings for word in ("--set-json", setting)]
        return refusal(*BASE, *words)

    assert "model is set by the chart" in message('trainingJob.config={"model": "x"}')
    assert "main revision" in message('model.revision="v2"')
    assert "api-key" in message("secrets.generate=false", 'valkey.existingSecret="v"')
    taken = '[{"name": "scratch", "emptyDir": {}}]'
    assert "scratch" in message(f"trainingJob.extraVolumes={taken}")
    assert "'sft', 'dpo', 'kto', 'grpo', 'sdft'" in message('trainingJob.method="ppo"')


@pytest.mark.found
@pytest.mark.parametrize(
    ("shown", "trained", "exit_code", "does"),
    [
        (4, False, 0, ["show", "train", "upload"]),
        # The run's mask is on the server: neither a removed Job nor a new chart trains it again.
        (0, False, 0, ["show"]),
        # The container restarts after training, for example because the upload failed.
        (4, True, 0, ["show", "upload"]),
        # A wrong key is found before hours of training.
        (3, False, 3, ["show"]),
        (1, False, 1, ["show", "show"]),
    ],
)
def test_the_job_trains_once(tmp_path, shown, trained, exit_code, does):
    log = tmp_path / "log"
    scripts = {
        "bmt_client": f'case "$*" in *show*) echo show "$@" >>{log}; exit {shown};; '
        f'*) echo upload "$@" >>{log};; esac',
        "bmt_train": f'echo train "$@" >>{log}',
    }
    if trained:
        (tmp_path / "trained").touch()
    variables = programs(tmp_path / "bin", **scripts) | {
        **{"METHOD": "sft", "MODEL": "a/b", "MASK": "m", "RUN": "run-1", "BMT_URL": "http://s"},
        **{"FOLDER": str(tmp_path), "TRIES": "2", "WAIT": "0"},
    }
    done = run_script("train.sh", variables)
    assert done.returncode == exit_code, done.stderr
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == does
    if "upload" in does:
        assert "--name m --alias run-1" in lines[-1]


@pytest.mark.found
def test_schedules_of_maintenance():
    schedules = ("--set", "maintenance.gcSchedule=@hourly")
    schedules += ("--set", "maintenance.fsckSchedule=0 3 * * 0", "--set", "backup.schedule=@daily")
    objects = render("--set", "valkey.enabled=true", *schedules)
    validate(objects)
    jobs = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "CronJob"}
    assert {n: s["schedule"] for n, s in jobs.items()} == {
        **{"masks-gc": "@hourly", "masks-fsck": "0 3 * * 0", "masks-backup": "@daily"}
    }
    (gc,) = jobs["masks-gc"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert gc["command"] == ["bmt-server", "gc"]
    assert environment(gc)["BMT_REGISTRY"] == "redis://masks-valkey:6379/0"
    policy = one(objects, "NetworkPolicy", "valkey")["spec"]["ingress"][0]["from"]
    admitted = [p["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for p in policy]
    labels = jobs["masks-gc"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] in admitted
    assert "valkey.enabled" in refusal(
        *("--set", "registry.url=redis://r", "--set", "backup.schedule=@daily")
    )
    small = ("--set", "backup.schedule=@daily", "--set", "backup.size=5Gi")
    assert "backup.keep" in refusal("--set", "valkey.enabled=true", *small)
    assert "pattern" in refusal("--set", "maintenance.gcSchedule=often")


@pytest.mark.found
def test_data_of_the_examples_is_mounted():
    objects = named("everything")
    recipe = one(objects, "ConfigMap", "train")["data"]["recipe.yaml"]
    (folder,) = {match[1] for match in re.finditer(r":(/\w+)/", recipe)}
    (container,) = one(objects, "Job", "train")["spec"]["template"]["spec"]["containers"]
    assert folder in {m["mountPath"] for m in container["volumeMounts"]}


def test_the_recipe_is_the_config_as_it_is():
    recipe = one(named("everything"), "ConfigMap", "train")
    assert yaml.safe_load(recipe["data"]["recipe.yaml"])["steps"] == 348
