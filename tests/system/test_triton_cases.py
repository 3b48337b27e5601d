"""Hundreds of generated cases for the Triton kernels, in the interpreter; some of full batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scenarios.figures import scaled

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.operate
def test_two_hundred_and_forty_generated_cases():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests/server/worker/kernels/triton_generated.py"), "--durations=3"]
    environment = {"TRITON_INTERPRET": "1", "BMT_TRITON_CASES": str(scaled(240))}
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    print(done.stdout[-600:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
