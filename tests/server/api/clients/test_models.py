"""The list of models: what is listed, filters and pages; deletion by OpenAI's route."""

from __future__ import annotations

import contextlib
import random

import anthropic
import httpx2
import openai
import pytest
import redis
from bmt_server.api.permissions import find_route

from tests.support.replica import make_mask, replica
from tests.support.scenarios.full_registry import fill

KINDS = ("base", "name", "alias", "version")


async def ids(api, key="infer", **params) -> list[str]:
    async with api.client(key) as client:
        answer = await client.get("/v1/models", params=params)
    assert answer.status_code == 200, answer.text
    found = [card["id"] for card in answer.json()["data"]]
    assert answer.json()["first_id"] == (found[0] if found else None)
    assert answer.json()["last_id"] == (found[-1] if found else None)
    return found


@pytest.fixture
async def masks(api):
    """Three masks, two aliases, and their ids by kind."""
    versions = {}
    for seed, (name, aliases) in enumerate({"b": ["prod", "dev"], "a": [], "ab": ["prod"]}.items()):
        made = (await api.put(name, make_mask(seed), params={"alias": aliases})).json()
        versions[name] = made["model"]
    await api.put("a", make_mask(9), "other")
    return {
        "base": ["tiny"],
        "name": ["a", "ab", "b"],
        "alias": ["ab:prod", "b:dev", "b:prod"],
        "version": [versions[name] for name in ("a", "ab", "b")],
    }


@pytest.mark.found
async def test_a_dropdown_has_each_mask_once_and_its_aliases(api, masks):
    assert await ids(api) == ["tiny", "a", "ab", "ab:prod", "b", "b:dev", "b:prod"]
    assert await ids(api, "other") == ["tiny", "a"]


async def test_each_kind_alone_and_together(api, masks):
    for kind in KINDS:
        assert await ids(api, kind=kind) == masks[kind]
    everything = await ids(api, kind=",".join(KINDS))
    assert sorted(everything) == sorted(model for kind in KINDS for model in masks[kind])
    assert await ids(api, kind=list(KINDS)) == everything
    assert await ids(api, kind="base, name") == ["tiny", "a", "ab", "b"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("a", ["a", "ab", "ab:prod"]),
        ("ab", ["ab", "ab:prod"]),
        ("ab:", ["ab:prod"]),
        ("b:p", ["b:prod"]),
        ("t", ["tiny"]),
        ("", ["tiny", "a", "ab", "ab:prod", "b", "b:dev", "b:prod"]),
        ("z", []),
        ("A", []),
        ("a@", []),
        ("é%s", []),
    ],
)
async def test_a_prefix(api, masks, prefix, found):
    assert await ids(api, prefix=prefix) == found


async def test_pages_have_every_id_once_in_both_directions(api, masks):
    for kinds in ("", "name", "alias", "base,version", ",".join(KINDS)):
        for prefix in ("", "a", "b"):
            options = {"kind": kinds, "prefix": prefix}
            whole = await ids(api, **options)
            for limit in (1, 2, 3, 1000):
                for cursor in ("after", "after_id"):
                    pages, more = [], {}
                    while page := await ids(api, limit=limit, **more, **options):
                        pages += page
                        more = {cursor: page[-1]}
                    assert pages == whole
                pages, more = [], {"before_id": "zz"}
                while page := await ids(api, limit=limit, **more, **options):
                    pages = page + pages
                    more = {"before_id": page[0]}
                assert pages == whole


async def test_a_page_after_an_id_that_is_gone(api, masks):
    for cursor, first in (
        *(("aa", "ab"), ("a@" + "0" * 12, "ab"), ("b:ex", "b:prod"), ("ab:zz", "b"), ("tiny", "a")),
    ):
        assert (await ids(api, after=cursor, limit=1)) == [first]
    assert await ids(api, after="zz") == []
    assert await ids(api, before_id="tiny") == []


async def test_wrong_parameters_are_named(api, masks):
    async with api.client("infer") as client:
        for params, field in (
            ({"kind": "masks"}, "kind"),
            ({"kind": "name,x"}, "kind"),
            ({"after": "A b"}, "after"),
            ({"before_id": "//"}, "before_id"),
            ({"after": "a", "before_id": "b"}, "before_id"),
        ):
            answer = await client.get("/v1/models", params=params)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
        for params in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"prefix": "a" * 600}):
            assert (await client.get("/v1/models", params=params)).status_code in (400, 422)


async def test_pages_of_a_large_registry(api, valkey, tmp_path):
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        fill(client, 1100)
    async with replica(valkey.url, tmp_path / "full", api.keys) as full:
        whole = await ids(full)
        assert len(whole) == 1101
        assert await ids(full, prefix="m00005") == [f"m{i:06}" for i in range(50, 60)]
        at = random.Random(0).sample(range(1, 1101), 5)
        for start in (1, 249, 250, 251, 1100, *at):
            page = await ids(full, after=whole[start - 1], limit=300)
            assert page == whole[start : start + 300]
            page = await ids(full, before_id=whole[start], limit=300)
            assert page == whole[max(0, start - 300) : start]


def client_of(api, kind, key):
    transport = httpx2.ASGITransport(app=api.app)
    http = httpx2.AsyncClient(transport=transport)
    url = "http://test/v1" if kind is openai.AsyncOpenAI else "http://test"
    return kind(base_url=url, api_key=api.keys[key], http_client=http, max_retries=0)


async def test_the_clients_of_openai_and_anthropic_list_and_show(api, masks):
    expected = await ids(api)
    async with client_of(api, openai.AsyncOpenAI, "infer") as client:
        assert [m.id async for m in client.models.list()] == expected
        assert (await client.models.retrieve("b:prod")).id == "b:prod"
    async with client_of(api, anthropic.AsyncAnthropic, "infer") as client:
        for options in ({}, {"limit": 2}, {"limit": 3, "after_id": "tiny"}):
            found = [m.id async for m in client.models.list(**options)]
            assert found == (expected[1:] if "after_id" in options else expected)
        assert (await client.models.retrieve("b:prod")).id == "b:prod"


@pytest.mark.found
async def test_openais_client_deletes_what_it_names(api, masks):
    stored = masks["version"][0]
    async with client_of(api, openai.AsyncOpenAI, "admin") as client:
        await api.put("a", make_mask(20))
        for model in (stored, "b:prod", "b", "ab:prod"):
            done = await client.models.delete(model)
            assert (done.id, done.object, done.deleted) == (model, "model", True)
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve(model)
            with pytest.raises(openai.NotFoundError):
                await client.models.delete(model)
        with pytest.raises(openai.BadRequestError, match="base model"):
            await client.models.delete("tiny")
        with pytest.raises(openai.BadRequestError, match="latest"):
            await client.models.delete("a:latest")
        with pytest.raises(openai.BadRequestError, match=r"acme\.bot"):
            await client.models.delete("acme/bot")
    assert await ids(api) == ["tiny", "a", "ab"]
    assert await ids(api, "other") == ["tiny", "a"]


async def test_deleting_a_model_needs_the_scope_of_what_is_deleted(api, masks):
    """The same as by the routes of masks, and by the base's name in front no other."""
    await api.put("rollout-1", make_mask(30))
    for model, path in (
        ("b", "/v1/masks/b"),
        (masks["version"][2], f"/v1/masks/b/versions/{masks['version'][2][2:]}"),
        ("b:prod", "/v1/masks/b/aliases/prod"),
        ("rollout-1", "/v1/masks/rollout-1"),
        ("rollout-1@" + "0" * 12, "/v1/masks/rollout-1/versions/" + "0" * 12),
        ("rollout-1:x", "/v1/masks/rollout-1/aliases/x"),
    ):
        by_id, by_path = find_route("DELETE", f"/v1/models/{model}"), find_route("DELETE", path)
        assert by_id.scope == by_path.scope, model
    for key, model, status in (
        ("infer", "b:prod", 403),
        ("upload", "b", 403),
        ("upload", masks["version"][2], 403),
        ("upload", "tiny:b", 403),
        ("admin", "tiny:b", 404),
        ("upload", "tiny", 403),
        ("other", "b", 404),
        ("upload", "rollout-1", 200),
        ("upload", "b:prod", 403),
        ("admin", "b:prod", 200),
    ):
        async with api.client(key) as client:
            answer = await client.delete(f"/v1/models/{model}")
        assert answer.status_code == status, (key, model, answer.text)
    async with api.client() as client:
        stored = await client.get("/v1/masks/b")
        answer = await client.delete("/v1/models/b", headers={"If-Match": '"' + "0" * 64 + '"'})
        assert answer.status_code == 412
        assert sorted(stored.json()["aliases"]) == ["dev", "latest"]


@pytest.mark.found
async def test_base_names_with_a_colon(api):
    """Matched whole; a mask is named alone or after one of them."""
    api.engine.base_names[:] = ["gpt-oss", "gpt-oss:120b", "org/Base"]
    stored = (await api.put("reverse", make_mask(1), params={"alias": "prod"})).json()
    await api.put("120b", make_mask(2))
    for model, answered in (
        ("gpt-oss", "gpt-oss"),
        ("gpt-oss:120b", "gpt-oss:120b"),
        ("org/Base", "org/Base"),
        ("reverse", stored["model"]),
        ("gpt-oss:reverse", stored["model"]),
        ("gpt-oss:120b:reverse", stored["model"]),
        ("gpt-oss:120b:reverse:prod", stored["model"]),
        (f"org/Base:{stored['model']}", stored["model"]),
        ("120b", (await api.put("120b", make_mask(2))).json()["model"]),
    ):
        answer = await api.ask(model)
        assert (answer.status_code, answer.json().get("model")) == (200, answered), model
        async with api.client("infer") as client:
            shown = await client.get(f"/v1/models/{model.replace('/', '%2F')}")
        assert (shown.status_code, shown.json().get("id")) == (200, model)
    for model in ("gpt-oss:none", "gpt-oss:", "gpt-oss:120b:", "gpt-oss:120b:none", "reverse:none"):
        assert (await api.ask(model)).status_code == 404
    for name, options in (("gpt-oss", {"params": {"alias": "120b"}}), ("gpt-oss", {})):
        refused = await api.put(name, make_mask(3), **options)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "name_reserved")
    assert (await ids(api))[:4] == ["gpt-oss", "gpt-oss:120b", "org/Base", "120b"]
    assert await ids(api, after="gpt-oss:120b", limit=2) == ["org/Base", "120b"]


@pytest.mark.found
async def test_a_base_name_hides_an_alias_and_no_alias_hides_a_base_name(api):
    await api.put("gpt-oss", make_mask(1), params={"alias": "120b"})
    api.engine.base_names[:] = ["gpt-oss:120b"]
    assert (await api.ask("gpt-oss:120b")).json()["model"] == "gpt-oss:120b"
    assert await ids(api) == ["gpt-oss:120b", "gpt-oss"]
    async with api.client() as client:
        answer = await client.put("/v1/masks/gpt-oss/aliases/120b", json={"rev": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "name_reserved")


@pytest.mark.found
async def test_a_name_of_the_hub_is_found_by_the_error(api):
    await api.put("acme.support-bot", make_mask(1))
    answer = await api.ask("acme/Support__Bot")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "`acme.support-bot`" in answer.json()["error"]["message"]
