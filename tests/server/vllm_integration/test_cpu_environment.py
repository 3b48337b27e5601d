"""Environment of vLLM's CPU workers: existing libraries only, never over the user's values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bmt_server.vllm_integration import cpu_environment

GIB = 1 << 30


@pytest.fixture
def host(tmp_path, monkeypatch) -> Path:
    """A host with 20 GiB free, tcmalloc, and an environment with Intel's OpenMP."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    for file in ("venv/lib/libiomp5.so", "usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: {24 * GIB >> 10} kB\nMemAvailable: {20 * GIB >> 10} kB\n"
    )
    return tmp_path


def recommended(host: Path, environ=(), **options) -> dict[str, str]:
    options = {"weights_bytes": GIB, "mask_bytes": GIB, "cores": 16, **options}
    variables = cpu_environment.recommended(dict(environ), root=host, **options)
    assert all(v.reason for v in variables)
    return {v.name: v.value for v in variables}


def test_both_libraries_are_preloaded(host):
    allocator = f"{host}/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
    assert recommended(host)["LD_PRELOAD"] == f"{allocator}:{host}/venv/lib/libiomp5.so"


def test_a_path_that_the_loader_would_split_is_left_out(host, monkeypatch):
    (host / "my venv/lib").mkdir(parents=True)
    (host / "my venv/lib/libiomp5.so").touch()
    monkeypatch.setattr(sys, "prefix", str(host / "my venv"))
    assert recommended(host)["LD_PRELOAD"].endswith("libtcmalloc_minimal.so.4")


def test_missing_libraries_are_not_preloaded(host):
    (host / "venv/lib/libiomp5.so").unlink()
    assert recommended(host)["LD_PRELOAD"].endswith("libtcmalloc_minimal.so.4")
    (host / "usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4").unlink()
    assert set(recommended(host)) == {
        *("VLLM_CPU_KVCACHE_SPACE", "VLLM_USE_AOT_COMPILE", "VLLM_USE_V2_MODEL_RUNNER")
    }


def test_the_users_own_variables_are_kept(host):
    own = {"LD_PRELOAD": "/own.so", "VLLM_CPU_KVCACHE_SPACE": "3"}
    assert not own.keys() & recommended(host, own).keys()
    assert "VLLM_CPU_KVCACHE_SPACE" not in recommended(host, kv_given=True)
    environ = {"LD_PRELOAD": "/own.so"}
    cpu_environment.apply(
        environ, cpu_environment.recommended(environ, root=host, weights_bytes=1, mask_bytes=1)
    )
    assert environ["LD_PRELOAD"] == "/own.so"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "8"


def test_with_few_cores_none_is_reserved(host):
    name = "VLLM_CPU_NUM_OF_RESERVED_CPU"
    assert recommended(host, cores=2)[name] == recommended(host, cores=4)[name] == "0"
    for others in ({"cores": 8}, {"cores": 2, "workers": 2}, {"cores": 2, "environ": {name: "1"}}):
        assert name not in recommended(host, **others)


@pytest.mark.parametrize(
    ("options", "gib"),
    [
        ({}, "7"),  # (20 - 3 - 2 - 1) / 2
        ({"workers": 2}, "3"),
        ({"weights_bytes": 16 * GIB}, "1"),
        ({"mask_bytes": 5 * GIB}, "5"),
    ],
)
def test_the_kv_cache_gets_half_of_the_memory_that_weights_and_masks_leave(host, options, gib):
    assert recommended(host, **options)["VLLM_CPU_KVCACHE_SPACE"] == gib


def test_a_containers_limit_counts(host):
    (host / "sys/fs/cgroup").mkdir(parents=True)
    (host / "sys/fs/cgroup/memory.max").write_text("max\n")
    (host / "sys/fs/cgroup/memory.current").write_text(f"{2 * GIB}\n")
    assert cpu_environment.free_memory(host) == 20 * GIB
    (host / "sys/fs/cgroup/memory.max").write_text(f"{10 * GIB}\n")
    assert cpu_environment.free_memory(host) == 8 * GIB
    # Files that were read, as a checkpoint that was downloaded, are given up first.
    (host / "sys/fs/cgroup/memory.stat").write_text(f"anon {GIB}\ninactive_file {GIB}\n")
    assert cpu_environment.free_memory(host) == 9 * GIB


def test_this_hosts_memory_is_read():
    assert 0 < cpu_environment.free_memory() < 1 << 50


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (["--port", "1"], False),
        (["--gpu-memory-utilization", "0.5"], True),
        (["--gpu_memory_utilization=0.5"], True),
        (["--gpu-mem", "0.5"], True),
        (["--kv-cache-memory-bytes", "1"], True),
        (["--config", "f.yaml"], True),
    ],
)
def test_flags_that_size_the_kv_cache_are_recognized(flags, given):
    assert cpu_environment.sizes_kv_cache(flags) is given


def test_weights_are_the_checkpoints_safetensors(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.safetensors").write_bytes(b"1")
    (tmp_path / "tokenizer.json").write_bytes(b"123")
    assert cpu_environment.weights_bytes(str(tmp_path), "bfloat16") == 6
    assert cpu_environment.weights_bytes(str(tmp_path), "float32") == 12


def test_doctor_names_what_is_missing_and_how_to_install_it(monkeypatch):
    import torch
    from bmt_server.cli.doctor import examine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu_environment, "openmp", lambda: Path("/x/libiomp5.so"))
    monkeypatch.setattr(cpu_environment, "tcmalloc", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    found = {f.what: f for f in examine()}
    assert found["OpenMP"].verdict == "ok"
    assert "/x/libiomp5.so" in found["OpenMP"].value
    assert found["Allocator"].verdict == "warn"
    assert "libtcmalloc-minimal4" in found["Allocator"].fix
    assert found["VLLM_CPU_KVCACHE_SPACE"].value.startswith("2")
