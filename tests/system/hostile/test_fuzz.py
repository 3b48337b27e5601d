"""A million executions of the `.bmt` reader on bytes that a coverage-guided fuzzer makes up."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.scenarios.figures import Figures, scaled

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

RUNS = scaled(1_000_000, 1000)
ROOT = Path(__file__).resolve().parents[3]


def test_fuzz_reader(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    figures = Figures("fuzz_reader")
    folder = tmp_path / "corpus"
    folder.mkdir()
    flags = [f"-runs={RUNS}", "-max_len=8192", "-rss_limit_mb=4096", "-timeout=20", "-seed=1"]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.operate.fuzz_reader", str(folder), *flags]
        + [f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    ran = re.search(r"Done (\d+) runs", done.stderr)
    count = int(ran.group(1)) if ran else 0
    size = f"{count} executions, {seconds:.0f} s"
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-6000:])
    figures.record("executions", count, "executions", f">= {RUNS}", size=size)
    figures.record("untyped_exceptions", int(done.returncode != 0), "exceptions", "== 0", size=size)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    figures.record("edges_covered", int(covered[-1]) if covered else 0, "edges", size=size)
    figures.end()
