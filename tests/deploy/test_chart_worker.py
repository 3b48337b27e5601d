"""Workers of fine-tuning jobs in the chart: off by default, with a key of their own."""

from __future__ import annotations

import pytest
from bmt_trainer.cli.main import app
from typer.main import get_command

from tests.support.deploy.chart import environment, one, refused, validate, with_values

ON = {"enabled": True, "existingSecret": "train-key"}
FILES = ["--files=s3://bucket/files"]


def worker(objects):
    pod = one(objects, "Deployment", "worker")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_there_are_none_by_default():
    kinds = [(o["kind"], o["metadata"]["name"]) for o in with_values()]
    assert not [name for kind, name in kinds if "worker" in name], kinds


def test_a_worker_has_its_own_key_and_nothing_of_the_registry():
    objects = with_values(worker=ON, extraArgs=FILES, **{"tls.existingSecret": "tls"})
    validate(objects)
    pod, container = worker(objects)
    variables = environment(container)
    assert variables["BMT_API_KEY"] == {"secretKeyRef": {"name": "train-key", "key": "api-key"}}
    assert variables["BMT_CA_FILE"] == "/etc/bmt/tls/ca.crt"
    assert not [name for name in variables if "REGISTRY" in name or "ADMIN" in name]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]
    assert container["startupProbe"]["exec"]["command"][-1] == "/scratch/jobs"
    # Another program than the server: its Service leads no request to a worker.
    deployment = one(objects, "Deployment", "worker")
    service = next(o for o in objects if o["kind"] == "Service" and o["spec"].get("selector"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= labels.items()


def test_its_flags_exist():
    _, container = worker(
        with_values(worker={**ON, "extraArgs": ["--max-length=64"]}, extraArgs=FILES)
    )
    name, *flags = container["args"]
    known = {flag for param in get_command(app).commands[name].params for flag in param.opts}
    assert {flag.partition("=")[0] for flag in flags} <= known
    required = {p.opts[0] for p in get_command(app).commands[name].params if p.required}
    assert required <= {flag.partition("=")[0] for flag in flags}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"worker": {"enabled": True}, "extraArgs": FILES}, "worker.existingSecret"),
        ({"worker": ON}, "--files"),
        ({"worker": ON, "extraArgs": FILES, "model.revision": "v2"}, "main revision"),
    ],
)
def test_workers_that_would_get_no_job_are_refused(values, words):
    assert words in refused(**values)
    if words == "--files":
        assert with_values(worker=ON, extraEnv=[{"name": "BMT_FILES", "value": "/srv"}])
