"""A base image in place of Docker's `python:…-slim`, which only a registry has.

Debian's packages of that image, and the Python of the running tests in /usr/local.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.containers.store import Store

MIRROR = "http://deb.debian.org/debian"
# What Docker's image has, and the libraries that Python's own modules load.
PACKAGES = (
    "ca-certificates,netbase,tzdata,libssl3t64,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,zlib1g,"
    "libreadline8t64,libncursesw6,libuuid1"
)


def make_base(store: Store, suite: str, tag: str, folder: Path) -> None:
    """Make image `tag` of Debian `suite`, with /usr/local/bin/python. Raises CalledProcessError."""
    root = folder / "base"
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={PACKAGES}",
        suite,
        str(root),
        MIRROR,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(root / "var/lib/apt/lists")
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    _copy_python(root / "usr/local")
    container = store.buildah("from", "scratch").strip()
    store.buildah("copy", "-q", container, str(root), "/")
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    store.buildah("config", "--env", f"PATH={path}", "--cmd", "python", container)
    store.buildah("commit", "-q", "--rm", container, tag)
    shutil.rmtree(root)


def _copy_python(target: Path) -> None:
    """The interpreter of this environment with pip, without other packages."""
    source = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = source / "lib" / version / "site-packages"

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder) == packages:
            return {name for name in names if name.partition("-")[0] != "pip"}
        return {name for name in names if name in ("__pycache__", "test") or name.endswith(".a")}

    if source == Path("/usr"):
        raise LookupError(
            "the tests run with Debian's own Python, which cannot be moved; use a Python in a "
            "folder of its own"
        )
    shutil.copytree(source / "lib" / version, target / "lib" / version, True, left_out)
    shutil.copytree(source / "include", target / "include", True, dirs_exist_ok=True)
    for library in (source / "lib").glob("libpython*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    (target / "bin").mkdir(exist_ok=True)
    shutil.copy2(source / "bin" / version, target / "bin")
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(version)
    machine = platform.machine()
    (target.parents[1] / "etc/ld.so.conf.d/python.conf").write_text("/usr/local/lib\n")
    subprocess.run(["chroot", str(target.parents[1]), "ldconfig"], check=True)
    assert (target / "bin" / version).exists(), f"no {version} for {machine}"
