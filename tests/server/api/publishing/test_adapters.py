"""vLLM's routes of adapters, as controllers call them, on masks of the registry."""

from __future__ import annotations

import asyncio

import bmt_core
import pytest

from tests.support.http.sources import response
from tests.support.replica import make_mask


async def call(api, action, key="upload", **body):
    async with api.client(key) as client:
        return await client.post(f"/v1/{action}_lora_adapter", json=body)


def code_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def place(server, imports_from):
    """Publishes masks at sources; returns the source."""
    imports_from(f"https://files.test:{server.port}")

    def put(number):
        server.answers[f"/{number}"] = response(bmt_core.encode(make_mask(number)))
        return server.url(f"/{number}")

    return put


async def test_load_use_and_unload(api, place):
    # As the sidecar of the Gateway API's inference extension sends it.
    loaded = await call(
        api, "load", lora_name="m", lora_path=place(1), base_model_name="meta/llama"
    )
    assert (loaded.status_code, loaded.text) == (
        200,
        "Success: LoRA adapter 'm' added successfully.",
    )
    answer = await api.ask("m", "infer")
    assert answer.json()["model"] == f"m@{make_mask(1).digest[:12]}"
    async with api.client("infer") as client:
        models = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["tiny", "m"]
    gone = await call(api, "unload", lora_name="m", lora_int_id=3)
    assert (gone.status_code, gone.text) == (
        200,
        "Success: LoRA adapter 'm' removed successfully.",
    )
    assert (await api.ask("m", "infer")).status_code == 404


async def test_a_name_that_is_there_and_one_that_is_not(api, place, server):
    """Controllers know both by vLLM's words and statuses."""
    await call(api, "load", lora_name="m", lora_path=place(1))
    before = len(server.seen)
    again = await call(api, "load", lora_name="m", lora_path=place(2))
    assert code_of(again) == (400, "already_loaded")
    assert "has already been loaded" in again.text
    assert "load_inplace" in again.text
    assert len(server.seen) == before
    replaced = await call(api, "load", lora_name="m", lora_path=place(2), load_inplace=True)
    assert replaced.status_code == 200
    assert (await api.ask("m")).json()["model"] == f"m@{make_mask(2).digest[:12]}"
    missing = await call(api, "unload", lora_name="none")
    assert code_of(missing) == (404, "mask_not_found")
    assert "cannot be found" in missing.text


async def test_of_two_loads_at_once_one_wins(api, place, server):
    async with api.client("upload") as client:
        answers = await asyncio.gather(
            *(
                client.post(
                    "/v1/load_lora_adapter", json={"lora_name": "m", "lora_path": place(number)}
                )
                for number in (1, 2, 3)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400]
    assert {code_of(a) for a in answers if a.status_code == 400} == {(400, "already_loaded")}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"lora_name": "m", "lora_path": "/srv/adapters/m"}, "source_invalid"),
        ({"lora_name": "m", "lora_path": "file:///etc/passwd"}, "source_invalid"),
        ({"lora_name": "m", "lora_path": "org/name"}, "source_invalid"),
        ({"lora_name": "m", "lora_path": ""}, "source_invalid"),
        ({"lora_name": "", "lora_path": "hf://a/b/c"}, "name_invalid"),
        ({"lora_name": "Org/Name", "lora_path": "hf://a/b/c"}, "name_invalid"),
        ({"lora_name": "m:prod", "lora_path": "hf://a/b/c"}, "name_invalid"),
        ({"lora_name": "tiny", "lora_path": "hf://a/b/c"}, "name_reserved"),
        ({"lora_name": "m", "lora_path": "hf://a/b/c", "is_3d_lora_weight": True}, "field_refused"),
        ({"lora_name": "m"}, "bad_request"),
        ({"lora_path": "hf://a/b/c"}, "bad_request"),
        ({"lora_name": ["m"], "lora_path": 5}, "bad_request"),
    ],
)
async def test_what_a_load_refuses(api, body, code):
    answer = await call(api, "load", **body)
    assert code_of(answer) == (400, code)
    if code == "source_invalid":
        assert "paths on the server are never read" in answer.text or "file" in answer.text


async def test_sources_outside_of_the_list(api, place):
    answer = await call(api, "load", lora_name="m", lora_path="https://evil.test/m.bmt")
    assert code_of(answer) == (403, "source_not_allowed")


async def test_an_upload_key_unloads_only_what_its_sources_still_have(api, place):
    """It may not remove what was uploaded or promoted; a stolen key would end production."""
    await api.put("uploaded", make_mask(1))
    await call(api, "load", lora_name="promoted", lora_path=place(1))
    async with api.client("promote") as client:
        await client.put("/v1/masks/promoted/aliases/prod", json={"rev": 1})
    await call(api, "load", lora_name="mixed", lora_path=place(1))
    await api.put("mixed", make_mask(2))
    for name in ("pinned", "ruled"):
        await call(api, "load", lora_name=name, lora_path=place(1))
    async with api.client("admin") as client:
        await client.put("/v1/masks/pinned/pin")
        await client.put("/v1/masks/ruled/retention", json={"keep_last": 3})
    await call(api, "load", lora_name="copied", lora_path=f"uploaded@{make_mask(1).digest}")
    for name in ("uploaded", "promoted", "mixed", "pinned", "ruled", "copied"):
        refused = await call(api, "unload", lora_name=name)
        assert code_of(refused) == (403, "scope_missing"), name
        assert "'admin'" in refused.text
        assert (await api.ask(name)).status_code == 200
        assert (await call(api, "unload", "admin", lora_name=name)).status_code == 200
    await api.put("rollout-a", make_mask(1))
    assert (await call(api, "unload", lora_name="rollout-a")).status_code == 200


async def test_what_another_server_did_a_moment_ago(api, place, monkeypatch):
    """This server's copy of the registry lags; controllers take "already loaded" for success."""
    await call(api, "load", lora_name="m", lora_path=place(1))
    await call(api, "load", lora_name="promoted", lora_path=place(1))
    await call(api, "load", lora_name="later", lora_path=place(1))
    digest = make_mask(1).digest
    await api.state.replica.close()  # no events from here on
    await api.state.registry.set_alias("default", "promoted", "prod", digest)
    quick = api.state.connection.quick
    await quick.hset("{bmt}:versions:default/later", "f" * 64, "2|9||of a later build")
    for name in ("promoted", "later"):
        refused = await call(api, "unload", lora_name=name)
        assert code_of(refused) == (403, "scope_missing"), name
    await api.state.registry.delete_name("default", "m")
    assert api.state.replica.get("default", "m") is not None
    assert (await call(api, "load", lora_name="m", lora_path=place(1))).status_code == 200
    await api.state.registry.delete_name("default", "m")
    gone = await call(api, "unload", lora_name="m")
    assert code_of(gone) == (404, "mask_not_found")
    assert "cannot be found" in gone.text


async def test_tenants_keys_and_scopes(api, place):
    await call(api, "load", lora_name="m", lora_path=place(1))
    for key, status in (("", 401), ("infer", 403), ("promote", 403), ("other", 404)):
        assert (await call(api, "unload", key, lora_name="m")).status_code == status
    # Names are those of a tenant.
    assert (await call(api, "load", "other", lora_name="m", lora_path=place(2))).status_code == 200
    assert (await call(api, "unload", "other", lora_name="m")).status_code == 200
    assert (await api.ask("m")).status_code == 200
