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

CASES = Path(__file__).with_name("triton_cases.py")


def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
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
    from bmt_server.worker.kernels.triton import delta, weights

    y, tile = f"*{dtype}", {"tile_start": "*i32", "tile_count": "*i32"}
    sizes = {"ROWS": delta.ROWS, "WIDTH": delta.WIDTH, "WIDE": wide}
    sizes["STAGE"] = 0 if wide else 4096
    tiles = {"TILE_ROWS": delta.TILE_ROWS, "TILE": delta.TILE, "WIDE": wide}
    whole = {
        "BITS": 16 if dtype == "bf16" else 32,
        "WIDE": wide,
        "ROWS": weights.ROWS,
        "WIDTH": weights.WIDTH,
    }
    ints = dict.fromkeys(("layer", "blocks", "R", "K", "y_stride", "x_stride"), "i32")
    types = {"y": y, "x": y, "transposed": y, "token_mask": "*i64", "tile_mask": "*i64"}
    types |= {"gates": "*i64", "old": "i64", "new": "i64", "mask": "i64", **tile, **ints}
    yield delta.correct, types, sizes, delta.WARPS
    yield delta.transpose, types, {"COLUMNS": delta.TRANSPOSE_COLUMNS, "TILE": delta.TILE}, 4
    yield delta.correct_tiles, types, tiles, delta.TILE_WARPS
    yield weights.switch, types, whole, weights.ROWS // 32
    yield weights.read_values, types, whole, weights.ROWS // 32


@pytest.mark.parametrize(
    ("capability", "dtype", "wide"), [(80, "bf16", False), (90, "bf16", False), (90, "fp32", True)]
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
