"""Workflow files: valid by the schema, audited, least rights, pinned, naming what exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.support.programs import ROOT, tool

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WRITES = {
    ("release.yml", "build"): {"id-token", "attestations"},
    ("release.yml", "images"): {"packages", "id-token"},
    ("release.yml", "chart"): {"packages", "id-token"},
    ("release.yml", "pypi"): {"id-token"},
    ("release.yml", "notes"): {"contents"},
}


def jobs() -> list:
    return [
        pytest.param(file, name, job, id=f"{file.stem}-{name}")
        for file in FILES
        for name, job in yaml.safe_load(file.read_text())["jobs"].items()
    ]


def test_the_three_workflows_are_here():
    assert [file.stem for file in FILES] == ["install", "release", "test"]


def test_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", *map(str, FILES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_audit():
    """zizmor: templates in scripts, kept credentials, excessive rights, caches of releases."""
    done = subprocess.run(
        [tool("zizmor"), "--offline", "--no-progress", "--persona", "pedantic", str(FOLDER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_actions_are_pinned_by_digest_and_say_their_version(file):
    lines = re.findall(r"uses:(.*)", file.read_text())
    assert lines
    for line in lines:
        assert re.fullmatch(r" [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert len({line.split("@")[0] for line in lines}) == len(set(lines)), "one version of each"


@pytest.mark.parametrize(("file", "name", "job"), jobs())
def test_a_job_has_the_rights_that_it_needs_and_an_end(file, name, job):
    assert yaml.safe_load(file.read_text())["permissions"] == {}
    assert 0 < job["timeout-minutes"] <= 180
    rights = job["permissions"]
    assert set(rights.values()) <= {"read", "write"}
    writes = {right for right, kind in rights.items() if kind == "write"}
    assert writes == WRITES.get((file.name, name), set())


@pytest.mark.parametrize(("file", "name", "job"), jobs())
def test_scripts_are_valid_and_name_what_exists(file, name, job):
    for step in job["steps"]:
        script = step.get("run", "")
        assert "${{" not in script, "values reach a script by its environment"
        done = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
        assert done.returncode == 0, script
        for target in re.findall(r"^make ([a-z0-9-]+)", script, re.MULTILINE):
            assert target in TARGETS, target
        for path in re.findall(r"\b(?:tools|tests|deploy)/[\w./-]+", script):
            assert (ROOT / path).exists(), path
    matrix = job.get("strategy", {}).get("matrix", {})
    assert set(matrix.get("target", ())) <= TARGETS
    for entry in matrix.get("include", []):
        assert (ROOT / f"deploy/docker/{entry['file']}.Dockerfile").exists()


def test_every_image_of_the_project_is_published_and_every_python_tested():
    release = yaml.safe_load((FOLDER / "release.yml").read_text())
    files = {entry["file"] for entry in release["jobs"]["images"]["strategy"]["matrix"]["include"]}
    images = {
        p.name.removesuffix(".Dockerfile") for p in (ROOT / "deploy/docker").glob("*.Dockerfile")
    }
    assert files == images
    pythons = yaml.safe_load((FOLDER / "test.yml").read_text())
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert pythons["jobs"]["test"]["strategy"]["matrix"]["python"] == classifiers


def test_what_a_pull_request_needs_is_run():
    """The commands that CONTRIBUTING.md names, each by a job or a matrix of one."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (sentence,) = re.findall(r"A pull request needs (.*?) to\s+pass", text, re.DOTALL)
    needed = set(re.findall(r"`make ([a-z-]+)`", sentence))
    assert len(needed) > 2
    run = set()
    for job in yaml.safe_load((FOLDER / "test.yml").read_text())["jobs"].values():
        run.update(job.get("strategy", {}).get("matrix", {}).get("target", ()))
        run.update(re.findall(r"make ([a-z-]+)", " ".join(s.get("run", "") for s in job["steps"])))
    assert needed <= run


def test_the_published_chart_takes_the_published_images(tmp_path):
    jobs = yaml.safe_load((FOLDER / "release.yml").read_text())["jobs"]
    steps = [step.get("run", "") for step in jobs["chart"]["steps"]]
    (script,) = (run for run in steps if "$IMAGES" in run)
    shutil.copytree(ROOT / "deploy/chart", tmp_path / "deploy/chart")
    environment = os.environ | {"IMAGES": "ghcr.io/acme"}
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=environment, check=True)
    values = ["-f", "deploy/chart/examples/cpu.yaml"]
    worker = ("worker.enabled=true", "worker.existingSecret=s", "extraArgs={--files=s3://b}")
    for setting in ("trainingJob.enabled=true", *worker):
        values += ["--set", setting]
    done = subprocess.run(
        [tool("helm"), "template", "masks", "deploy/chart", *values],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    images = {
        image.partition(":")[0]
        for image in re.findall(r"^\s+(?:- )?image: \"?([^\s\"]+)", done.stdout, re.MULTILINE)
    }
    pushed = jobs["images"]["strategy"]["matrix"]["include"]
    assert {f"ghcr.io/acme/{entry['name']}" for entry in pushed} <= images
    assert not [image for image in images if image.startswith("bmt-adapters/")]


def test_a_bill_of_materials_names_what_an_image_installs():
    """The release writes one for each locked file."""
    (line,) = re.findall(r"for lock in ([\w -]+);", (ROOT / "Makefile").read_text())
    assert all((ROOT / f"deploy/docker/requirements/{lock}.txt").exists() for lock in line.split())
    pinned = (ROOT / "tools/release-requirements.txt").read_text()
    assert re.search(r"^cyclonedx-bom==", pinned, re.MULTILINE)
    assert all("==" in x for x in pinned.splitlines() if x and not x.startswith("#"))
