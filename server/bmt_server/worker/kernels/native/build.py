"""Compiles the CPU kernel once for each host and keeps it in the user's cache.

Compiled where it runs, because `-march=native` then means this very CPU and one source serves
x86 and ARM; vLLM's own compiled mode asks for the same compiler. It takes some seconds, once: the
result is kept under the hash of all that shapes it.
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
    """The kernel cannot be compiled here; the message says why and what would mend it."""


def library(say: Callable[[str], None] = lambda text: None) -> Path:
    """The compiled library's path, compiled first where need be. Raises BuildError.

    say: told in one line that it compiles, and then how long that took. Several processes may
    call this at once: one compiles, the others wait for it.
    """
    command = _command()
    folder = cache_folder()
    name = f"masked_delta-{_identity(command)}.so"
    path = folder / name
    if path.exists():
        return path
    with _locked(folder / f"{name}.lock"):
        if not path.exists():
            say(f"compiling the mask kernel for this CPU with {command[0]}, once")
            start = time.perf_counter()
            _compile(command, path)
            say(f"compiled the mask kernel in {time.perf_counter() - start:.1f} s: {path}")
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/bmt-server, made with mode 0700. Raises BuildError where it is not ours.

    What lies there is loaded as code, so nobody else may be able to write to it.
    """
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = parent / "bmt-server"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be made ({error}); set XDG_CACHE_HOME to a folder "
            "that you may write to"
        ) from None
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise BuildError(
            f"the cache folder {folder} is owned by uid {found.st_uid} with mode "
            f"{stat.S_IMODE(found.st_mode):o}, and code is loaded from it; it must be yours "
            f"(uid {os.getuid()}) and no one else's to write: chmod 700, or set XDG_CACHE_HOME"
        )
    return folder


def compiler() -> list[str]:
    """$CXX, else the first of g++, clang++ and c++ on the path. Raises BuildError."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for candidate in [chosen] if chosen else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError(
        f"there is no C++ compiler ({' '.join(chosen) or 'g++, clang++ or c++'}); install g++"
    )


def _command() -> list[str]:
    """All but the output's name."""
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
    """Hash of sources, flags, compiler, CPU and torch: another of any is another library."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.h")) + [SOURCES / "bmt.cpp"]:
        digest.update(source.read_bytes())
    version = _run([command[0], "--version"]).stdout
    for part in (*command, version, _cpu(), torch.__version__):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """What `-march=native` looks at: homes are shared between unlike hosts."""
    lines = [platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        keys = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
        first = info.read_text().split("\n\n")[0].splitlines()
        lines += [line for line in first if line.split("\t")[0].split(":")[0].strip() in keys]
    return "\n".join(lines)


def _compile(command: list[str], path: Path) -> None:
    # Beside its place, so that the rename is atomic: a reader sees a whole library or none.
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
    """Hold a lock that ends with its process, however that ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
