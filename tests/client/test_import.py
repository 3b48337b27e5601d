"""Import cost, public names and `python -m bmt_client`."""

from __future__ import annotations

import os
import subprocess
import sys

import bmt_client

SURFACE = [
    "Alias",
    "ApiKey",
    "AsyncBmtClient",
    "AuthenticationError",
    "BaseModelInfo",
    "BmtClient",
    "BmtClientError",
    "Conflict",
    "FileInfo",
    "Invalid",
    "JobEvent",
    "JobInfo",
    "KeyInfo",
    "LimitTable",
    "Limits",
    "MaskInfo",
    "ModelInfo",
    "NewApiKey",
    "NotFound",
    "Page",
    "PermissionDenied",
    "ProtocolError",
    "RateLimited",
    "Retention",
    "TooLarge",
    "Unavailable",
    "Upload",
    "Usage",
    "UsageError",
    "UsageRow",
    "Version",
]


def python(code: str) -> str:
    # BLAS would start one thread per core, whose spinning counts as CPU time.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_surface_is_pinned():
    assert bmt_client.__all__ == SURFACE
    assert all(hasattr(bmt_client, name) for name in SURFACE)


def test_import_loads_no_heavy_package():
    heavy = {"torch", "vllm", "transformers", "httpx2", "openai", "typer", "rich", "pydantic"}
    assert python(f"import sys, bmt_client; print(sorted({heavy} & set(sys.modules)))") == "[]\n"
    heavy = {"torch", "vllm", "transformers", "httpx2", "openai", "bmt_server", "bmt_trainer"}
    code = f"import sys, bmt_client.cli; print(sorted({heavy} & set(sys.modules)))"
    assert python(code) == "[]\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "bmt_client", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("bmt-client ")
