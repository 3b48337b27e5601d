"""The example of a reinforcement job on a real server with a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.served import Served, Valkey
from tests.support.tiny_model import save_tiny_llama

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "reinforcement_job.py"
pytestmark = [pytest.mark.operate, pytest.mark.engine]


@pytest.fixture
def registry_of_test(tmp_path):
    (tmp_path / "valkey").mkdir()
    store = Valkey(tmp_path / "valkey")
    store.start()
    yield store
    store.close()


def run(model: Path, folder: Path, registry: Valkey, *flags: str, timeout: int) -> str:
    """Output of the example, on a server and a worker of its own."""
    files = str(folder / "files")
    options = ("--enforce-eager", "--dtype", "float32", "--files", files)
    served = Served(model, folder, *options, registry=registry.url)
    worker = None
    try:
        command = [sys.executable, "-m", "bmt_trainer", "worker", "--server", served.url]
        command += ["--model", str(model), "--folder", str(folder / "work"), "--device", "cpu"]
        environment = {**os.environ, "BMT_API_KEY": served.key, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen([*command, "--max-new-tokens", "16"], env=environment)
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), served.url, "smol", *flags],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait(90)
        served.stop()


def test_the_example_goes_from_a_file_to_a_model(tmp_path, registry_of_test):
    model = save_tiny_llama(tmp_path / "base", hidden_size=128, max_position_embeddings=512)
    said = run(model, tmp_path, registry_of_test, "9", "16", timeout=400)
    # The answer of such a model may have any characters.
    assert re.search(r"^ft-\w+: ", said, re.MULTILINE), said
