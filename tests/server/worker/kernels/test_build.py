"""Compiling the CPU kernel: once for a host, whole or not at all, and what happens without."""

import os
import stat
import subprocess
import sys
import textwrap

import pytest
import torch
from bmt_server.settings import SettingsError
from bmt_server.worker.kernels import masked_delta
from bmt_server.worker.kernels.native.build import (
    SOURCES,
    BuildError,
    cache_folder,
    compiler,
    library,
)
from bmt_server.worker.kernels.portable import PortableKernel

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bmt-server"


@pytest.fixture
def fake(tmp_path, monkeypatch, cache):
    """A compiler that takes its time, notes each run and writes what it is told to."""

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


def test_it_is_compiled_once_and_says_so(fake, tmp_path, cache):
    said = []
    first = library(said.append)
    assert first.read_text() == "whole"
    assert len(said) == 2
    assert "compiling" in said[0]
    assert " s: " in said[1]
    assert library(said.append) == first
    assert len(said) == 2
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
    monkeypatch.delenv(masked_delta.ENV, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    assert masked_delta.choose(CPU, said.append) is PortableKernel
    assert len(said) == 1
    assert "no C++ compiler" in said[0]
    assert "install g++" in said[0]


def test_a_library_that_does_not_load_is_not_used(fake, monkeypatch):
    monkeypatch.delenv(masked_delta.ENV, raising=False)
    said = []
    assert masked_delta.choose(CPU, said.append) is PortableKernel
    assert "cannot be loaded" in said[-1]


def test_what_is_forced_is_had_or_refused(fake, monkeypatch):
    fake("exit 3")
    monkeypatch.setenv(masked_delta.ENV, "native")
    with pytest.raises(masked_delta.KernelError, match="failed"):
        masked_delta.choose(CPU)
    monkeypatch.setenv(masked_delta.ENV, "portable")
    said = []
    assert masked_delta.choose(CPU, said.append) is PortableKernel
    assert not said
    monkeypatch.setenv(masked_delta.ENV, "fast")
    with pytest.raises(SettingsError, match="BMT_KERNEL is 'fast'"):
        masked_delta.choose(CPU)


def test_a_dtype_that_the_compiled_kernel_does_not_know(each_kernel, monkeypatch):
    from tests.support.worker import gates

    half = gates(live=False, dtype=torch.float16)
    if each_kernel == "native":
        with pytest.raises(masked_delta.KernelError, match="float16"):
            masked_delta.make(half, masked_delta.Bounds(memory_bytes=1 << 20))
    monkeypatch.delenv(masked_delta.ENV)
    assert masked_delta.make(half, masked_delta.Bounds(memory_bytes=1 << 20)).name == "portable"


def test_code_is_not_loaded_from_where_others_write(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="no one else's to write"):
        cache_folder()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME"):
        library()


def test_every_instruction_set_compiles_and_agrees(tmp_path):
    """The same source for hosts with less than this one: its answers differ by rounding alone."""
    try:
        command = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    source = tmp_path / "check.cpp"
    source.write_text((SOURCES.parents[4] / "tests/server/worker/kernels/check.cpp").read_text())
    flags = ["-march=native", "-march=x86-64-v3", "-march=x86-64"]
    if os.uname().machine != "x86_64":
        flags = ["-march=native", ""]
    answers = []
    for number, flag in enumerate(flags):
        program = tmp_path / f"check{number}"
        build = [*command, "-O1", "-std=c++17", *flag.split(), f"-I{SOURCES}", str(source)]
        subprocess.run([*build, "-o", str(program)], check=True, capture_output=True)
        out = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
        answers.append([float(v) for v in out.split()])
    assert len(answers[0]) > 1000
    for other in answers[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(answers[0]), rtol=0, atol=2e-5)
