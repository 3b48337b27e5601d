"""Shell scripts of the chart, run with stand-ins for the programs of their images."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.deploy.chart import CHART


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH begins with these programs."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def run_script(name: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The finished run of a script in files/."""
    script = (CHART / "files" / name).read_text()
    return subprocess.run(
        ["sh", "-euc", script],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
