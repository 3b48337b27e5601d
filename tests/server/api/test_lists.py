"""Lists of a large registry: in pages and parts, each a bounded piece of work."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
import redis
from bmt_server.registry.names.catalog import Catalog
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.reader import NameRead
from bmt_server.registry.schemas import Version

from tests.support.replica import make_mask, replica
from tests.support.scenarios.full_registry import fill

NAMES = 2000


@pytest.fixture
async def full(api, valkey, tmp_path):
    """A replica of a registry with many names."""
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        fill(client, NAMES)
        fill(client, 2, first=NAMES, tenant="other")
    async with replica(valkey.url, tmp_path / "full", api.keys) as one:
        yield one


@pytest.mark.found
async def test_the_list_of_models_is_sent_in_parts(full, monkeypatch):
    pages, page = [], Catalog.page

    def counted(catalog, tenant, after, limit):
        pages.append(limit)
        return page(catalog, tenant, after, limit)

    monkeypatch.setattr(Catalog, "page", counted)
    turns, parts = [], []

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    async for part in full.state.models.listing("default"):
        parts.append(part)
    other.cancel()
    listed = json.loads(b"".join(parts))["data"]
    assert len(listed) == 1 + NAMES
    assert len({card["id"] for card in listed}) == len(listed)
    assert listed[1] == full.state.models.card(
        "m000000", full.state.replica.get("default", "m000000").newest()
    )
    assert max(pages) <= 250
    assert len(turns) >= NAMES / 250
    async with full.client("infer") as client:
        answer = await client.get("/v1/models")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["data"] == listed


async def test_the_list_of_models_parses_no_version(full, monkeypatch):
    monkeypatch.setattr(Version, "from_entry", None)
    async with full.client("infer") as client:
        assert len((await client.get("/v1/models")).json()["data"]) == 1 + NAMES
    async with full.client("other") as client:
        assert len((await client.get("/v1/models")).json()["data"]) == 3


async def test_a_page_of_masks_is_made_of_its_names_alone(full, monkeypatch):
    parsed, parse = [], Version.from_entry
    monkeypatch.setattr(Version, "from_entry", lambda text: parsed.append(1) or parse(text))
    async with full.client("infer") as client:
        first = (await client.get("/v1/masks", params={"limit": 30, "after": "m000999"})).json()
        last = (await client.get("/v1/masks", params={"after": f"m{NAMES - 11:06}"})).json()
    assert [m["name"] for m in first["data"]] == [f"m{i:06}" for i in range(1000, 1030)]
    assert (first["has_more"], first["last"]) == (True, "m001029")
    assert (len(last["data"]), last["has_more"]) == (10, False)
    assert len(parsed) == 40


@pytest.mark.found
async def test_a_file_is_found_without_a_search(full, monkeypatch):
    name, other = (
        full.state.replica.get("default", "m000007").newest(),
        full.state.replica.get("other", f"m{NAMES:06}").newest(),
    )
    monkeypatch.setattr(Catalog, "page", None)
    monkeypatch.setattr(Version, "from_entry", None)
    async with full.client("infer") as client:
        for digest, status in (
            (name.file_digest, 200),
            (other.file_digest, 404),
            ("0" * 64, 404),
        ):
            assert (await client.get(f"/v1/blobs/{digest}")).status_code == status


async def test_a_file_of_two_versions_goes_with_the_second(api):
    for name in ("a", "b"):
        await api.put(name, make_mask(1))
    digest = api.state.replica.get("default", "a").newest().file_digest
    async with api.client() as client:
        for name, status in (("a", 200), ("b", 404)):
            assert (await client.get(f"/v1/blobs/{digest}")).status_code == 200
            assert (await client.delete(f"/v1/masks/{name}")).status_code == 204
            assert (await client.get(f"/v1/blobs/{digest}")).status_code == status


@pytest.mark.found
async def test_versions_come_in_pages(api, valkey):
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        (name,) = fill(client, 1, 250)
    revs: list[int] = []
    async with api.client() as client:
        after: dict[str, int] = {}
        while True:
            path = f"/v1/masks/{name}/versions"
            page = (await client.get(path, params={"limit": 100, **after})).json()
            revs += [v["rev"] for v in page["data"]]
            if not page["has_more"]:
                break
            assert page["last"] == revs[-1]
            after = {"after": page["last"]}
        assert revs == list(range(250, 0, -1))
        short = (await client.get(f"/v1/masks/{name}/versions")).json()
        assert (len(short["data"]), short["has_more"]) == (100, True)
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after": -1}, {"after": "x"}):
            assert (await client.get(path, params=wrong)).status_code in (400, 422)


async def test_a_name_that_is_deleted_while_a_page_is_made_is_left_out(full, monkeypatch):
    """Its versions vanish from the state that the page holds."""
    show, done = NameState.response, []

    def late(state, *args):
        if not done:
            done.append(full.state.replica.catalog)
            for name in ("m000001", "m000002"):
                done[0].apply(NameRead("default", name, 10**9, whole=True))
        return show(state, *args)

    monkeypatch.setattr(NameState, "response", late)
    async with full.client("infer") as client:
        answer = await client.get("/v1/masks", params={"limit": 4})
    assert answer.status_code == 200
    page = answer.json()
    assert [m["name"] for m in page["data"]] == ["m000000", "m000003"]
    assert (page["has_more"], page["last"]) == (True, "m000003")
