"""Take from a virtual environment what no running server or trainer reads.

    python slim.py /opt/bmt --without triton --if-imported torchvision

Removed: tests that packages install, static libraries, torch's test programs, bytecode of models,
packages named with --without, and those named with --if-imported if importing them fails (builds
for other hardware). Debugging symbols are stripped from the libraries that are large because of
them. Prints the megabytes of each step. With --cuda-links, CUDA's packages get the layout of a
toolkit, as `cuda` in the environment, where compilers look for nvcc and libraries to link.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Stripped by name: a tool that rewrote a library, as wheels do with those that they bundle, can
# leave one that `strip` damages.
SYMBOLS = ("vllm/*.so", "vllm/*/*.so", "torch/lib/libtorch_*.so", "llvmlite/binding/*.so")
TORCH = ("torch/test", "torch/lib/*_test.so", "torch/lib/libbackend_with_compiler.so")
# A process imports the code of one model, and compiles it in a tenth of a second.
BYTECODE = ("transformers/models/*/__pycache__", "vllm/model_executor/models/__pycache__")
# The one program of torch/bin that a running torch starts.
TORCH_PROGRAM = "torch_shm_manager"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path)
    parser.add_argument("--without", nargs="*", default=[], metavar="PACKAGE")
    parser.add_argument("--if-imported", nargs="*", default=[], metavar="PACKAGE")
    parser.add_argument("--cuda-links", action="store_true")
    options = parser.parse_args()
    python = options.environment / "bin" / "python"
    (packages,) = options.environment.glob("lib/python3*/site-packages")
    before = megabytes([packages])
    for name in options.if_imported:
        done = subprocess.run(
            [python, "-c", f"import torch, {name}"], capture_output=True, text=True
        )
        if done.returncode:
            why = done.stderr.strip().rpartition("\n")[2]
            print(f"{name} is left out: it cannot be imported ({why})")
            options.without.append(name)
    for name in options.without:
        # pip is not in the environment.
        command = [sys.executable, "-m", "pip", "--python", str(python), "uninstall", "-y", name]
        subprocess.run(command, check=True)
    for title, paths in (
        ("tests", tests(packages)),
        ("bytecode of models", (path for glob in BYTECODE for path in packages.glob(glob))),
        # nvcc links some of CUDA's.
        (
            "static libraries",
            (path for path in packages.rglob("*.a") if "nvidia" not in path.parts),
        ),
        ("torch's tests", (path for glob in TORCH for path in packages.glob(glob))),
        (
            "torch's programs",
            (path for path in packages.glob("torch/bin/*") if path.name != TORCH_PROGRAM),
        ),
    ):
        print(f"{title}: {remove(list(paths)):.0f} MB")
    if options.cuda_links:
        link_cuda(options.environment, packages)
    libraries = [path for glob in SYMBOLS for path in packages.glob(glob)]
    whole = megabytes(libraries)
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
    print(f"symbols: {whole - megabytes(libraries):.0f} MB")
    print(f"{packages}: {before:.0f} MB before, {megabytes([packages]):.0f} MB now")
    return 0


def link_cuda(environment: Path, packages: Path) -> None:
    """Make `cuda` a toolkit: bin/nvcc, lib64, and each library also by its name without a version.

    Raises SystemExit without exactly one nvcc.
    """
    found = [path.parents[1] for path in packages.glob("nvidia/cu*/bin/nvcc")]
    if len(found) != 1:
        raise SystemExit(f"one nvcc is needed in nvidia/cu*/bin, and there are {len(found)}")
    (toolkit,) = found
    (environment / "cuda").symlink_to(toolkit.relative_to(environment))
    if not (toolkit / "lib64").exists():
        (toolkit / "lib64").symlink_to("lib")
    for library in sorted((toolkit / "lib").glob("lib*.so.*")):
        plain = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)


def tests(packages: Path) -> Iterator[Path]:
    """Folders `tests` that hold tests, not modules of another purpose."""
    for folder in packages.rglob("tests"):
        if folder.is_dir() and any(folder.rglob("test_*.py")):
            yield folder


def remove(paths: list[Path]) -> float:
    """Megabytes removed. Paths in removed folders are skipped."""
    total = 0.0
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            total += megabytes([path])
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            total += megabytes([path])
            path.unlink()
    return total


def megabytes(paths: list[Path]) -> float:
    """Size of files and of all files in folders. Links count nothing."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(f.lstat().st_size for f in files if f.is_file() and not f.is_symlink()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
