"""Results of the CPU kernel's tasks on fixed inputs, compiled by any compiler for any CPU."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from bmt_server.worker.kernels.native.build import SOURCES

_PROGRAM = SOURCES.parents[4] / "tests/server/worker/kernels/check.cpp"


def results(
    compiler: Sequence[str], folder: Path, *, runner: Sequence[str] = ()
) -> dict[torch.dtype, torch.Tensor]:
    """By element type, y of every variant of a task.

    compiler: its command with flags; runner: the command that runs its programs.
    """
    program = folder / "check"
    build = [*compiler, "-std=c++17", f"-I{SOURCES}", str(_PROGRAM), "-o", str(program)]
    subprocess.run(build, check=True, capture_output=True)

    def printed(*arguments: str) -> torch.Tensor:
        command = [*runner, str(program), *arguments]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return torch.tensor([float(value) for value in out.split()])

    return {torch.float32: printed(), torch.bfloat16: printed("bfloat16")}


def assert_agree(
    found: dict[torch.dtype, torch.Tensor], expected: dict[torch.dtype, torch.Tensor]
) -> None:
    """Raise AssertionError unless both agree but for the order of sums and its rounding."""
    assert len(expected[torch.float32]) > 1000
    torch.testing.assert_close(found[torch.float32], expected[torch.float32], rtol=0, atol=2e-5)
    # A sum that rounds to the other of two neighbors.
    torch.testing.assert_close(
        found[torch.bfloat16], expected[torch.bfloat16], rtol=2**-7, atol=2e-5
    )
