"""A registry of many names or versions, written as the server's scripts write it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import bmt_core
import redis
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.schemas import BaseRef, Version

from tests.support.masks import BASE
from tests.support.replica import make_mask

TENANT = "default"
CREATED = "2026-11-01T10:00:00.000+00:00"
# As long as what a training run writes.
METADATA = {
    "method": "grpo",
    "data": "gsm8k:main/train",
    "seed": 0,
    "steps": 400,
    "learning_rate": 3e-4,
    "eval": {"accuracy": 0.945, "of": 512, "suite": "gsm8k"},
    "trainer": "bmt-train 0.1.0",
    "note": "one of many",
}


def fill(
    registry: redis.Redis, names: int, versions: int = 1, *, first: int = 0, tenant: str = TENANT
) -> list[str]:
    """Write names `m000000…` of `versions` versions each, with blobs. Returns the names.

    The masks are those of the seeds from `first` on.
    """
    made = [f"m{i:06}" for i in range(first, first + names)]
    seeds = iter(range(first, first + names * versions))
    for at in range(0, len(made), 500):
        with registry.pipeline(transaction=False) as pipe:
            for name in made[at : at + 500]:
                _write(pipe, tenant, name, [next(seeds) for _ in range(versions)])
            pipe.execute()
    registry.incrby(f"{PREFIX}ids", names * versions)
    registry.incrby(f"{PREFIX}generation", names * versions)
    return made


def _write(pipe: redis.client.Pipeline, tenant: str, name: str, seeds: list[int]) -> None:
    path, parent = f"{tenant}/{name}", ""
    entries = {}
    for rev, (version, data) in enumerate(_versions(tenant, name, seeds), start=1):
        entries[version.digest] = f"{rev}|{seeds[rev - 1] + 1}|{parent}|{version.to_entry()}"
        parent = version.digest
        pipe.set(blob_key(version.file_digest), data)
    pipe.hset(f"{PREFIX}versions:{path}", mapping=entries)
    pipe.hset(f"{PREFIX}name:{path}", mapping={"rev": len(seeds), "latest": parent})
    pipe.sadd(f"{PREFIX}names", path)


def _versions(tenant: str, name: str, seeds: list[int]) -> Iterator[tuple[Version, bytes]]:
    for seed in seeds:
        mask = make_mask(seed, number=seed)
        data = bmt_core.encode(mask)
        yield (
            Version(
                name=name,
                tenant=tenant,
                digest=mask.digest,
                file_digest=hashlib.sha256(data).hexdigest(),
                created=CREATED,
                bytes=len(data),
                zeros=mask.zeros,
                sparsity=mask.sparsity or 0.0,
                base=BaseRef(model_id=BASE.model_id, fingerprint=BASE.fingerprint),
                metadata=METADATA,
            ),
            data,
        )
