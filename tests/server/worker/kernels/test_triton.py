"""Triton kernels without a GPU: run in the interpreter, and compiled for several targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bmt_server.worker.kernels import selection
from bmt_server.worker.kernels.portable import PortableKernel

pytest.importorskip("triton")

HERE = Path(__file__).parent


def test_in_the_interpreter():
    """Generated cases: tests/system/test_triton_cases.py."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / "triton_cases.py"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def specimens(dtype: str, wide: bool):
    """Each kernel with the types and constants of its launches."""
    from bmt_server.worker.kernels.triton import delta, tiles, weights

    sizes = {"ROWS": delta.ROWS, "WIDTH": delta.WIDTH, "WIDE": wide, "STAGE": 0}
    sizes |= {"COLUMNS": delta.COPY_COLUMNS, "TILE": 0, "AT_ONCE": 0}
    groups = {"ROWS": delta.TILE_ROWS, "ZEROS": delta.TILE_ZEROS, "WIDE": wide}
    whole = {
        "BITS": 16 if dtype == "bf16" else 32,
        "WIDE": wide,
        "ROWS": weights.ROWS,
        "WIDTH": weights.WIDTH,
    }
    ints = ("layer", "blocks", "tokens", "first", "R", "K", "y_stride", "x_stride")
    types = dict.fromkeys(ints, "i32") | dict.fromkeys(("y", "x", "copied"), f"*{dtype}")
    types |= dict.fromkeys(("token_mask", "tiles", "gates"), "*i64")
    types |= dict.fromkeys(("old", "new", "mask"), "i64")
    yield delta.correct, types, sizes | ({} if wide else {"STAGE": 4096}), delta.WARPS
    for size in tiles.LEAST:
        part = {"TILE": size, "AT_ONCE": 2048 // size}
        yield delta.correct, types, sizes | part, delta.WARPS
        yield delta.correct_tiles, types, groups | part, delta.TILE_WARPS
    yield weights.switch, types, whole, weights.ROWS // 32
    yield weights.read_values, types, whole, weights.ROWS // 32


@pytest.mark.parametrize(
    ("capability", "dtype", "wide"),
    [(80, "bf16", False), (90, "bf16", False), (100, "bf16", False), (90, "fp32", True)],
)
def test_compiles_for_gpus(tmp_path, monkeypatch, capability, dtype, wide):
    """The compiler rejects more than the interpreter does; it needs no device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    for kernel, types, constants, warps in specimens(dtype, wide):
        signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
        )
        assert made.asm["cubin"].startswith(b"\x7fELF")
        if kernel.arg_names[0] == "y" and dtype == "bf16":
            assert "cvt.rn.bf16" in made.asm["ptx"], "y is rounded to nearest"
        if kernel.arg_names[0] == "old":
            # The barrier that orders the two writes to one element, see `weights.switch`.
            stores = made.asm["ptx"].split("st.global")
            assert any("bar.sync" in between for between in stores[1:-1])


def test_cuda_devices_use_it_if_triton_is_installed(monkeypatch):
    assert selection.choose_kernel(torch.device("cpu")).name != "triton"
    monkeypatch.setattr(selection, "supports_cuda_graphs", lambda: True)
    assert selection.choose_kernel(torch.device("cuda")).name == "triton"
    monkeypatch.setattr(selection, "supports_cuda_graphs", lambda: False)
    assert selection.choose_kernel(torch.device("cuda")) is PortableKernel
