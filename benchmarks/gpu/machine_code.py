"""Instructions of the masked delta's compiled kernels, counted in their machine code without a GPU.

The Triton package carries the assembler and the disassembler. A kernel's loops are nested: an
outer pass handles one block of rows, the innermost one some zeros of each row.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPABILITY = 90
TYPES = {"y": "*bf16", "x": "*bf16", "copied": "*bf16", "tiles": "*i64", "token_mask": "*i64"}
SIZES = ("layer", "blocks", "tokens", "first", "R", "K", "y_stride", "x_stride")
# Arguments that are multiples of 16 in a model, as the launcher finds.
ALIGNED = (*TYPES, "R", "K", "y_stride", "x_stride")


@dataclass(frozen=True, slots=True)
class Passes:
    """Instructions of one warp: a pass over a block of rows, and each step of its inner loop."""

    block: int
    step: int

    def warp(self, steps: float) -> float:
        return self.block + steps * self.step


def of_correct() -> Passes:
    """`delta.correct` for steps without tiles and of more than a few tokens."""
    from bmt_server.worker.kernels.triton import delta

    constants = {"WIDE": False, "ROWS": delta.ROWS, "WIDTH": delta.WIDTH, "STAGE": 0}
    constants |= {"TILE": 0, "AT_ONCE": 0, "COLUMNS": delta.COPY_COLUMNS}
    return _passes(delta.correct, constants, delta.WARPS)


def of_tiles(size: int) -> Passes:
    """`delta.correct_tiles` for tiles of `size` tokens."""
    from bmt_server.worker.kernels.triton import delta

    constants = {"WIDE": False, "ROWS": delta.TILE_ROWS, "ZEROS": delta.TILE_ZEROS, "TILE": size}
    return _passes(delta.correct_tiles, {**constants, "AT_ONCE": 2048 // size}, delta.TILE_WARPS)


def _passes(kernel: Any, constants: dict[str, Any], warps: int) -> Passes:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = TYPES | dict.fromkeys(SIZES, "i32")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in ALIGNED if n in names},
    )
    target, options = GPUTarget("cuda", CAPABILITY, 32), {"num_warps": warps}
    made = triton.compile(source, target=target, options=options)
    loops = _loops(_listing(made.asm["cubin"], Path(triton.__file__).parent))
    inner, outer = min(loops), max(loops)
    return Passes(outer - inner, inner)


def _listing(code: bytes, package: Path) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        program = package / "backends" / "nvidia" / "bin" / "nvdisasm"
        done = subprocess.run([program, "-c", file.name], check=True, capture_output=True)
        return done.stdout.decode()


def _loops(listing: str) -> list[int]:
    """Instructions between each backward branch and its label; the idle loop at the end aside."""
    labels: dict[str, int] = {}
    loops, at = [], 0
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = at
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/\s", line):
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in labels and at > labels[branch[1]]:
                loops.append(at - labels[branch[1]] + 1)
            at += 1
    return loops
