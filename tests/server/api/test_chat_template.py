"""A mask trained with another chat template or config.json than the server's is warned of."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from bmt_core.config import BASE_CONFIG, arithmetic
from bmt_server.registry.connection import RegistryConnection

from tests.support.replica import make_mask, replica

SERVED, OTHER = "5d" * 32, "a0" * 32
WARNING = "trained with the chat template"


@pytest.fixture
def warned(caplog):
    """The warnings of templates so far."""
    logger = logging.getLogger("vllm.bmt_server")
    logger.addHandler(caplog.handler)
    yield lambda: [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]
    logger.removeHandler(caplog.handler)


async def served(valkey, folder, template):
    store = RegistryConnection(valkey.url)
    await store.quick.flushall()
    await store.close()
    return replica(valkey.url, folder, {"admin": "k"}, no_auth=True, chat_template=template)


@pytest.mark.parametrize(
    ("server", "trained", "same"),
    [
        (SERVED, SERVED, True),
        (SERVED, OTHER, False),
        (SERVED, None, False),
        ("none", None, True),
        ("none", OTHER, False),
        ("", OTHER, None),
    ],
)
async def test_the_template_of_a_mask_is_compared(valkey, tmp_path, warned, server, trained, same):
    mask = make_mask(0, chat_template=trained)
    async with await served(valkey, tmp_path, server) as api, api.client() as client:
        uploaded = (await api.put("m", mask)).json()
        listed = (await client.get("/v1/masks")).json()["data"]
        versions = (await client.get("/v1/masks/m/versions")).json()["data"]
        shown = (await client.get("/v1/masks/m")).json()
        found = [v["same_chat_template"] for v in (uploaded, shown, *listed, *versions)]
        assert found == [same] * 4
        assert (await api.ask("m")).status_code == 200  # warned of, not refused
        assert (await api.ask("m")).status_code == 200
        await asyncio.sleep(0)
    lines = warned()
    assert bool(lines) is (same is False)
    if lines:
        assert len(set(lines)) == 1
        assert f"m@{mask.digest[:12]}" in lines[0]
        assert (trained or "none")[:12] in lines[0]
        assert server[:12] in lines[0]


async def test_masks_without_the_field_are_not_warned_of(valkey, tmp_path, warned):
    async with await served(valkey, tmp_path, SERVED) as api, api.client() as client:
        await api.put("old", make_mask(0, seed_of_run=1))
        assert (await client.get("/v1/masks/old")).json()["same_chat_template"] is None
        assert (await api.ask("old")).status_code == 200
    assert not warned()


@pytest.mark.found
async def test_another_arithmetic_of_the_base_is_warned_of_once(
    valkey, tmp_path, monkeypatch, caplog
):
    logger = logging.getLogger("vllm.bmt_server")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # the folder that the replica's settings name
    config = {"rms_norm_eps": 1e-5, "rope_theta": 1e4}
    (tmp_path / "tiny/config.json").write_text(json.dumps(config))
    trained = {"same": arithmetic("tiny"), "other": {**arithmetic("tiny"), "rms_norm_eps": 0.1}}
    async with replica(valkey.url, tmp_path, {"admin": "k"}, no_auth=True) as api:
        for seed, (name, fields) in enumerate(trained.items()):
            await api.put(name, make_mask(seed, **{BASE_CONFIG: fields}))
            for _ in range(2):
                assert (await api.ask(name)).status_code == 200
    lines = {r.getMessage() for r in caplog.records if "config.json" in r.getMessage()}
    [line] = lines
    assert line.startswith("other@")
    assert "rms_norm_eps 0.1 (here 1e-05)" in line
