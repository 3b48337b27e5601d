"""Compilation of the CPU kernel, once per host, into the user's cache folder.

The kernel is compiled on the host that runs it: `-march=native` then targets this CPU, and one
source serves x86 and ARM. vLLM's compiled mode needs the same compiler. The compilation takes some
seconds; the library's name contains a hash of everything that it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-w")
_TIMEOUT_S = 300


class BuildError(Exception):
    """The kernel cannot be compiled here; the message gives the reason and the fix."""


def library(report: Callable[[str], None] = lambda text: None) -> Path:
    """Return the library's path; compile it if the cache does not hold it. Raises BuildError.

    report: receives one line before the compilation and one with its duration after it. Several
    processes may call this at once: one compiles, and the others wait for it.
    """
    command = _command()
    folder = cache_folder()
    name = f"masked_delta-{_identity(command)}.so"
    path = folder / name
    if path.exists():
        return path
    with _locked(folder / f"{name}.lock"):
        if not path.exists():
            report(f"compiling the mask kernel for this CPU with {command[0]}, once")
            start = time.perf_counter()
            _compile(command, path)
            report(f"compiled the mask kernel in {time.perf_counter() - start:.1f} s: {path}")
    return path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/bmt-server, created with mode 0700 if it does not exist.

    The process loads its files as code, so no other user may have write access. Raises BuildError
    if the folder cannot be created, or if another user owns it or may write to it.
    """
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = parent / "bmt-server"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be created ({error}); set XDG_CACHE_HOME to a "
            "folder with write access"
        ) from None
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise BuildError(
            f"the cache folder {folder} belongs to uid {status.st_uid} with mode "
            f"{stat.S_IMODE(status.st_mode):o}, and code is loaded from it; uid {os.getuid()} must "
            "own it and have the only write access: chmod 700, or set XDG_CACHE_HOME"
        )
    return folder


def compiler() -> list[str]:
    """Return $CXX, else the first of g++, clang++ and c++ on the path. Raises BuildError."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for candidate in [chosen] if chosen else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError(
        f"no C++ compiler found ({' '.join(chosen) or 'g++, clang++ or c++'}); install g++"
    )


def _command() -> list[str]:
    """The compiler's command line, without the output file."""
    root = Path(torch.__file__).parent
    return [
        *compiler(),
        *_FLAGS,
        str(SOURCES / "bmt.cpp"),
        f"-I{root / 'include'}",
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
    ]


def _identity(command: list[str]) -> str:
    """Hash of sources, flags, compiler, CPU and torch; a change to any of them is a new library."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.h")) + [SOURCES / "bmt.cpp"]:
        digest.update(source.read_bytes())
    version = _run([command[0], "--version"]).stdout
    for part in (*command, version, _cpu(), torch.__version__):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """CPU properties behind `-march=native`, because unlike hosts may share a home folder."""
    lines = [platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        keys = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
        first = info.read_text().split("\n\n")[0].splitlines()
        lines += [line for line in first if line.split("\t")[0].split(":")[0].strip() in keys]
    return "\n".join(lines)


def _compile(command: list[str], path: Path) -> None:
    # In the same folder, so that the rename is atomic: a reader sees a complete library or none.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".build-", suffix=".so")
    os.close(handle)
    try:
        done = _run([*command, "-o", temporary])
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise BuildError(
                f"{command[0]} failed ({done.returncode}): "
                f"{(lines or done.stderr.splitlines() or ['no message'])[0].strip()}"
            )
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which the kernel releases even if the process is killed."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
