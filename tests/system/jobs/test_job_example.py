"""The example of a reinforcement job on a real server with a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_model import save_tiny_llama
from tests.support.training.job_place import job_place

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "reinforcement_job.py"
pytestmark = [pytest.mark.operate, pytest.mark.engine]


def test_the_example_goes_from_a_file_to_a_model(tmp_path):
    model = save_tiny_llama(tmp_path / "base", hidden_size=128, max_position_embeddings=512)
    with job_place(model, tmp_path, "--max-new-tokens", "16") as served:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), served.url, "smol", "9", "16"],
            env={**os.environ, "BMT_API_KEY": served.key},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # The answer of such a model may have any characters.
    assert re.search(r"^ft-\w+: ", done.stdout, re.MULTILINE), done.stdout
