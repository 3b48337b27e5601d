"""Pin what the README's install lines and the images install: `constraints/` and the images' locks.

    python tools/lock.py                  # resolve again with uv, on the network
    python tools/lock.py --torch FOLDER   # CPU builds of torch from a folder of wheels
    python tools/lock.py --check          # offline: are the files those of this pyproject.toml?

`constraints/cpu.txt` and `constraints/gpu.txt` hold one version of each package that any extra
brings, for `pip install -c`. The files in `deploy/docker/requirements` hold a part of the same
versions with the hashes of all their files, for `pip install --no-deps --require-hashes -r`.
Builds for CPUs have other hashes in each package index, so torch and torchvision are in
`torch-cpu.txt`, without hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints"
REQUIREMENTS = ROOT / "deploy" / "docker" / "requirements"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vLLM's requirements that a server of text does not need; see `torch-cpu.txt` for torchvision.
UNUSED = ("torchaudio", "torchcodec")
# Packages that exist as builds for CPUs, with a local version (`+cpu`), outside of PyPI.
FROM_TORCH = ("torch", "torchvision", *UNUSED)
# Hosts that vLLM and torch have wheels with CUDA for.
GPU_HOSTS = [
    f"sys_platform == 'linux' and platform_machine == '{machine}' and python_version < '3.15' "
    "and platform_python_implementation == 'CPython'"
    for machine in ("x86_64", "aarch64")
]


@dataclass(frozen=True, slots=True)
class Lock:
    """One file of pinned requirements.

    extras: those of this project that it covers. within: the constraints that fix its versions.
    left_out: packages that the file does not hold.
    """

    path: Path
    device: str
    extras: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def within(self) -> Path | None:
        return None if self.path.parent == CONSTRAINTS else CONSTRAINTS / f"{self.device}.txt"


LOCKS = (
    Lock(CONSTRAINTS / "cpu.txt", "cpu", ("cpu", "trainer", "client", "s3", "paper", "graders")),
    Lock(CONSTRAINTS / "gpu.txt", "gpu", ("gpu", "trainer", "client", "s3", "paper", "graders")),
    Lock(REQUIREMENTS / "server-cpu.txt", "cpu", ("cpu", "client"), FROM_TORCH),
    Lock(REQUIREMENTS / "server-gpu.txt", "gpu", ("gpu", "client"), UNUSED),
    Lock(REQUIREMENTS / "trainer-cpu.txt", "cpu", ("trainer", "client", "s3"), FROM_TORCH),
    Lock(REQUIREMENTS / "trainer.txt", "gpu", ("trainer", "client", "s3"), UNUSED),
)
TORCH_CPU = REQUIREMENTS / "torch-cpu.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, without a network")
    parser.add_argument(
        "--torch", default=TORCH_CPU_INDEX, help="index or folder of torch's builds for CPUs"
    )
    options = parser.parse_args()
    if options.check:
        faults = list(check())
        print(*faults, sep="\n", end="\n" if faults else "")
        return int(bool(faults))
    for lock in LOCKS:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        lock.path.write_text(header(lock) + resolve(lock, options.torch))
        print(f"{lock.path.relative_to(ROOT)}: {len(pins(lock.path))} packages")
    TORCH_CPU.write_text(torch_cpu())
    return 0


def resolve(lock: Lock, torch: str) -> str:
    """uv's choice for `lock`. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--no-header", "--no-annotate"]
    command += [word for extra in lock.extras for word in ("--extra", extra)]
    command += [word for name in lock.left_out for word in ("--no-emit-package", name)]
    if lock.device == "cpu":
        command += (
            ["--find-links", str(Path(torch).resolve())]  # uv runs in another folder
            if Path(torch).is_dir()
            else ["--index", torch, "--index-strategy", "unsafe-best-match"]
        )
    with tempfile.TemporaryDirectory() as folder:
        if lock.within:
            within = Path(folder, "within.txt")
            # Without the index, which uv would ask in place of a folder.
            within.write_text(re.sub(r"^--.*\n", "", lock.within.read_text(), flags=re.M))
            command += ["--generate-hashes", "--constraints", str(within)]
        project = Path(folder, "pyproject.toml")
        text = PROJECT.read_text()
        if lock.device == "gpu":
            # A folder need not hold CPU builds for each Python, so those are resolved without.
            text += f"\n[tool.uv]\nenvironments = {json.dumps(GPU_HOSTS)}\n"
        project.write_text(text)
        done = subprocess.run(
            [*command, str(project)], stdout=subprocess.PIPE, text=True, check=True, cwd=folder
        )
    text = done.stdout
    if lock.device == "gpu":
        # The condition that all lines share says no more than GPU_HOSTS.
        (everywhere,) = re.findall(r"^(?:zstandard==\S+)( ; [^\\\n]+?)(?: \\)?$", text, flags=re.M)
        text = re.sub(re.escape(everywhere) + r"( \\)?$", r"\1", text, flags=re.MULTILINE)
    # `torchvision==0.28.0` fits PyPI's build and that of PyTorch's index for CPUs; pip prefers
    # the second. vLLM's wheel for CPUs itself requires torch with the local version.
    return re.sub(r"^(torch\w+==[\d.]+)\+cpu", r"\1", text, flags=re.MULTILINE)


def header(lock: Lock) -> str:
    index = f"--extra-index-url {TORCH_CPU_INDEX}\n" if lock.within is None else ""
    return (
        f"# Written by tools/lock.py for [{','.join(lock.extras)}]; {digest(lock)}\n"
        f"{index if lock.device == 'cpu' else ''}"
    )


def torch_cpu() -> str:
    """Requirements of the CPU images from PyTorch's index, installed with `--no-deps`."""
    versions = pins(CONSTRAINTS / "cpu.txt")
    torch = max(versions["torch"], key=len)
    (vision,) = versions["torchvision"]
    return (
        "# Written by tools/lock.py. torchvision: vLLM imports it for the image processors of\n"
        "# models such as Qwen 3.5, also where they read text alone.\n"
        f"torch=={torch}\ntorchvision=={vision}\n"
    )


def digest(lock: Lock) -> str:
    """Digest of what pyproject.toml requires, as far as it concerns `lock`."""
    inputs = [*sorted(map(str, requirements(lock.extras))), *lock.left_out]
    return f"inputs {hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"


def requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """Requirements of this project with `extras`; extras of extras followed."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    waiting = [*extras]
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


def pins(path: Path) -> dict[str, set[str]]:
    """Versions in a file of pinned requirements, by package."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.M):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def check() -> Iterator[str]:
    """Faults of the files: a line each."""
    for lock in LOCKS:
        name = lock.path.relative_to(ROOT)
        if not lock.path.exists():
            yield f"{name} is missing; run `python tools/lock.py`"
            continue
        if digest(lock) not in lock.path.read_text().splitlines()[0]:
            yield f"{name} is not of this pyproject.toml; run `python tools/lock.py`"
        held = pins(lock.path)
        for requirement in requirements(lock.extras):
            package = canonicalize_name(requirement.name)
            if package in lock.left_out:
                continue
            if not held.get(package):
                yield f"{name} lacks {package}"
            for version in held.get(package, ()):
                if not requirement.specifier.contains(version, prereleases=True):
                    yield f"{name} pins {package} {version}, and pyproject.toml wants {requirement}"
        if lock.within and lock.within.exists():
            fixed = pins(lock.within)
            for pinned, versions in held.items():
                if not versions <= fixed.get(pinned, set()):
                    yield f"{name} pins {pinned} {', '.join(versions)}, unlike {lock.within.name}"
    if all(lock.path.exists() for lock in LOCKS) and (
        not TORCH_CPU.exists() or TORCH_CPU.read_text() != torch_cpu()
    ):
        yield f"{TORCH_CPU.relative_to(ROOT)} is out of date; run `python tools/lock.py`"


if __name__ == "__main__":
    sys.exit(main())
