"""One real server for the neighbors, with a mask, an alias, and a key that may only infer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bmt_core
import pytest
from bmt_client import BmtClient

from tests.support.http.ports import free_port
from tests.support.masks import random_mask_of
from tests.support.scenarios.neighbors import Neighborhood
from tests.support.served import Served


@pytest.fixture(scope="package")
def neighborhood(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighborhood]:
    metrics = free_port()
    server = Served(
        smol,
        tmp_path_factory.mktemp("neighbors"),
        *("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "8"),
        *("--max-model-len", "2048", "--metrics-port", str(metrics)),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )
    with BmtClient(server.url, server.key) as client:
        mask = bmt_core.encode(random_mask_of(smol, 5, sparsity=0.02))
        version = client.upload(mask, name="reverse", alias=["prod"]).model
        key = client.keys.create(["infer"]).key
    yield Neighborhood(server, version, key, f"http://127.0.0.1:{metrics}/metrics")
    assert server.stop() in (0, -15)
