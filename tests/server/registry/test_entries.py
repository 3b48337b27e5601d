"""Registry entries of this build and of builds that call the sparsity `density`."""

from __future__ import annotations

import json
from typing import Any

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.registry import Registry
from bmt_server.registry.schemas import BaseRef, Version
from pydantic import BaseModel

from tests.support.replica import make_mask

# An entry as a build before 0.1.0 wrote it.
FORMER = (
    f'{{"name":"math","tenant":"default","digest":"{"3f" * 32}","file_digest":"{"4e" * 32}",'
    '"created":"2026-11-01T10:00:00.000+00:00","bytes":100,"zeros":5,"density":0.002,'
    f'"base":{{"model_id":"m","fingerprint":"{"5d" * 32}"}},"metadata":{{"seed":1}}}}'
)


class FormerVersion(BaseModel):
    """The fields that a build before 0.1.0 requires of an entry."""

    name: str
    tenant: str
    digest: str
    file_digest: str
    created: str
    bytes: int
    zeros: int
    density: float
    base: BaseRef
    metadata: dict[str, Any]


def test_a_former_entry_is_read():
    version = Version.from_entry(FORMER)
    assert (version.sparsity, version.zeros, version.metadata) == (0.002, 5, {"seed": 1})


def test_an_entry_comes_back_as_it_was_written():
    version = Version.from_entry(FORMER).model_copy(update={"metadata": {"note": "Größe 数"}})
    assert Version.from_entry(version.to_entry()) == version
    assert "density" not in version.model_dump()


def test_a_former_build_reads_a_new_entry():
    version = Version.from_entry(FORMER)
    former = FormerVersion.model_validate_json(version.to_entry())
    assert former.density == version.sparsity
    assert former == FormerVersion.model_validate_json(FORMER)


async def test_a_registry_with_entries_of_both_builds(api):
    mask = make_mask(0)
    made = (await api.put("m", mask)).json()
    registry, key = Registry(api.state.connection), f"{PREFIX}versions:default/m"
    stored = (await registry.connection.quick.hget(key, mask.digest)).decode()
    head, entry = stored[: stored.index("{")], json.loads(stored[stored.index("{") :])
    assert entry["sparsity"] == entry["density"] == made["sparsity"] == mask.sparsity
    assert "density" not in made
    del entry["sparsity"]
    await registry.connection.quick.hset(key, mask.digest, head + json.dumps(entry))
    (state,) = await registry.states([("default", "m")])
    assert state.response(state.versions[mask.digest])["sparsity"] == mask.sparsity
