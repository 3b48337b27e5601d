"""Compilation of the CPU kernel: once per host, atomic, and the fallback without a compiler."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from bmt_server.settings import SettingsError
from bmt_server.worker.kernels.native.build import (
    SOURCES,
    BuildError,
    cache_folder,
    compiler,
    library,
)
from bmt_server.worker.kernels.portable import PortableKernel
from bmt_server.worker.kernels.selection import (
    KERNEL_ENV,
    KernelError,
    KernelLimits,
    choose_kernel,
    make_kernel,
)

from tests.support.kernels import check
from tests.support.programs import tool
from tests.support.worker import gates

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bmt-server"


@pytest.fixture
def fake(tmp_path, monkeypatch, cache):
    """A slow compiler that logs each run and executes `body`."""

    def install(body='sleep 0.5; printf whole > "$out"', version="fake 1.0"):
        path = tmp_path / "fake-c++"
        path.write_text(
            textwrap.dedent(f"""\
            #!/bin/sh
            if [ "$1" = --version ]; then echo '{version}'; exit; fi
            echo run >> {tmp_path}/runs
            while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
            {body}
            """)
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    install()
    return install


def runs(tmp_path):
    log = tmp_path / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_it_is_compiled_once_and_reports_it(fake, tmp_path, cache):
    lines = []
    first = library(lines.append)
    assert first.read_text() == "whole"
    assert len(lines) == 2
    assert "compiling" in lines[0]
    assert " s: " in lines[1]
    assert library(lines.append) == first
    assert len(lines) == 2
    assert runs(tmp_path) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {p.suffix for p in cache.iterdir()} == {".so", ".lock"}


def test_processes_that_race_compile_once(fake, tmp_path, cache):
    code = (
        "from bmt_server.worker.kernels.native.build import library; print(library().read_text())"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in racers] == ["whole"] * 4
    assert runs(tmp_path) == 1


def test_another_compiler_makes_another_library(fake, tmp_path):
    first = library()
    fake(version="fake 2.0")
    assert library() != first
    assert runs(tmp_path) == 2


@pytest.mark.parametrize("body", ["echo 'x.h:1: error: no' >&2; exit 1", "echo cut > $out; exit 1"])
def test_a_compiler_that_fails_leaves_nothing(fake, tmp_path, cache, body):
    fake(body)
    with pytest.raises(BuildError, match="failed"):
        library()
    assert not list(cache.glob("*.so"))
    assert not list(cache.glob(".build-*"))


def test_without_a_compiler_masks_run_on_the_portable_kernel(monkeypatch, cache, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(KERNEL_ENV, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = []
    assert choose_kernel(CPU, lines.append) is PortableKernel
    assert len(lines) == 1
    assert "no C++ compiler" in lines[0]
    assert "install g++" in lines[0]


def test_a_library_that_does_not_load_is_not_used(fake, monkeypatch):
    monkeypatch.delenv(KERNEL_ENV, raising=False)
    lines = []
    assert choose_kernel(CPU, lines.append) is PortableKernel
    assert "cannot be loaded" in lines[-1]


def test_a_forced_kernel_is_chosen_or_refused(fake, monkeypatch):
    fake("exit 3")
    monkeypatch.setenv(KERNEL_ENV, "native")
    with pytest.raises(KernelError, match="failed"):
        choose_kernel(CPU)
    monkeypatch.setenv(KERNEL_ENV, "portable")
    lines = []
    assert choose_kernel(CPU, lines.append) is PortableKernel
    assert not lines
    monkeypatch.setenv(KERNEL_ENV, "fast")
    with pytest.raises(SettingsError, match="BMT_KERNEL is 'fast'"):
        choose_kernel(CPU)


def test_a_dtype_that_the_native_kernel_does_not_support(each_kernel, monkeypatch):
    half = gates(live=False, dtype=torch.float16)
    if each_kernel == "native":
        with pytest.raises(KernelError, match="float16"):
            make_kernel(half, KernelLimits(memory_bytes=1 << 20))
    monkeypatch.delenv(KERNEL_ENV)
    assert make_kernel(half, KernelLimits(memory_bytes=1 << 20)).name == "portable"


def test_a_folder_that_others_may_write_to_is_refused(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="only write access"):
        cache_folder()


def test_a_cache_folder_that_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME"):
        library()


def test_every_instruction_set_compiles_and_agrees(tmp_path):
    """Builds for older instruction sets give the same results up to rounding."""
    try:
        command = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    flags = ["-march=native", "-march=x86-64-v3", "-march=x86-64"]
    if os.uname().machine != "x86_64":
        flags = ["-march=native", ""]
    first, *others = (check.results([*command, "-O1", *f.split()], tmp_path) for f in flags)
    for other in others:
        check.assert_agree(other, first)


@pytest.mark.parametrize("flag", ["-march=armv8-a", "-march=armv8.2-a+fp16", "-march=armv9-a"])
def test_arm_agrees(tmp_path, flag):
    """Compiled by GCC for ARM, as on a host of that kind, and run under emulation."""
    compiled = [tool("aarch64-g++"), "-static", "-O3", flag]
    on_arm = check.results(compiled, tmp_path, runner=[tool("qemu-aarch64"), "-cpu", "max"])
    check.assert_agree(on_arm, check.results(["g++", "-O1"], tmp_path))


def test_the_library_compiles_for_arm(tmp_path):
    """Whole, with the headers of torch: its libraries are this host's, so it is not linked."""
    program = tmp_path / "bmt.o"
    flags = ["-O3", "-std=c++17", "-fPIC", "-w", f"-I{Path(torch.__file__).parent / 'include'}"]
    command = [tool("aarch64-g++"), *flags, "-c", str(SOURCES / "bmt.cpp"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    assert program.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
