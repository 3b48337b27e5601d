"""A fuzz target of the `.bmt` reader: any bytes give a mask or a `BmtError`, and nothing else.

    python -m tests.operate.fuzz_reader CORPUS -runs=1000000

Arguments are libFuzzer's. Each input's first byte says whether checksums are put right, so that
the fuzzer gets behind them, and which limits the reader has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bmt_core"]):
    import bmt_core

from tests.support.damaged_files import LIMITS, put_right

ATTACKS = Path(__file__).resolve().parents[2] / "assets" / "attacks"
SMALL = 4096


def corpus(folder: Path) -> None:
    """Every attack and sound file of the tests, as inputs."""
    for path in ATTACKS.glob("*.bmt"):
        data = path.read_bytes()
        if len(data) < SMALL:
            for how in range(2 * len(LIMITS)):
                (folder / f"{path.stem}-{how}").write_bytes(bytes([how]) + data)


def one_input(data: bytes) -> None:
    if not data:
        return
    how, file = data[0], data[1:]
    limits = LIMITS[how // 2 % len(LIMITS)]
    if how & 1:
        file = put_right(file)
    for read in (bmt_core.decode, bmt_core.inspect):
        try:
            read(file, limits=limits)
        except bmt_core.BmtError as error:
            if not error.code:
                raise AssertionError("an error without a code") from error


if __name__ == "__main__":
    corpus(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
