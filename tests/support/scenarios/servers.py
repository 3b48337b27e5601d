"""Servers of the scenarios: real model, a registry that may be behind a proxy, one admin key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import bmt_core
from bmt_client import BmtClient

from tests.support.masks import random_mask_of
from tests.support.scenarios.load import Target
from tests.support.scenarios.publisher import Publisher
from tests.support.served import Served

# Several engines on a few cores: each a thread of its own, bound to none.
SEVERAL = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
# In float32, which every CPU is quick at.
FLAGS = ("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "32")


def start(
    model: Path,
    folder: Path,
    registry: str,
    key: str,
    *flags: str,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    port: int = 0,
) -> Served:
    """A server that takes `key` for an administrator's. port: a free one where it is 0."""
    folder.mkdir(exist_ok=True)
    served = Served(
        model,
        folder,
        *FLAGS,
        *flags,
        registry=registry,
        env={**(env or {}), "BMT_ADMIN_KEY": key},
        wait=wait,
        port=port,
    )
    served.key = key
    return served


@contextlib.contextmanager
def server(
    model: Path,
    folder: Path,
    registry: str,
    key: str,
    *flags: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """One server, ended with the block."""
    served = start(model, folder, registry, key, *flags, env=env)
    try:
        yield served
    finally:
        served.stop()


@contextlib.contextmanager
def several(
    model: Path, folder: Path, registries: Sequence[str], key: str, *flags: str
) -> Iterator[list[Served]]:
    """A server for each registry's URL; they start side by side and end with the block."""
    made = [
        start(model, folder / str(i), url, key, *flags, env=SEVERAL, wait=False)
        for i, url in enumerate(registries)
    ]
    try:
        for one in made:
            one.wait()
        yield made
    finally:
        for one in made:
            one.stop()


def target(served: Served | Publisher) -> Target:
    return Target(served.port, served.key)


def upload(served: Served, model: Path, names: Mapping[str, int], sparsity: float = 0.002) -> None:
    """Masks of random positions under these names, each with its seed."""
    with BmtClient(base_url=served.url, api_key=served.key) as client:
        for name, seed in names.items():
            client.upload(bmt_core.encode(random_mask_of(model, seed, sparsity)), name=name)
