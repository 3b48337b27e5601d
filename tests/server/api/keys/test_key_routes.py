"""API keys over HTTP: each made, listed, rotated and revoked by those who may, and by no others."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bmt_server.api.routes import keys as routes
from bmt_server.registry.keys import writer
from bmt_server.registry.keys.reader import KEYS
from bmt_server.registry.keys.record import SCOPES, read_record
from bmt_server.registry.keys.secret import well_formed

from tests.support.replica import make_mask


class Caller:
    """Requests with one key. Every answer of an error has a code."""

    def __init__(self, api, key):
        self.api, self.key = api, key

    async def __call__(self, method, path, body=None):
        async with self.api.client("") as client:
            headers = {"Authorization": f"Bearer {self.key}"}
            return await client.request(method, path, json=body, headers=headers)

    async def make(self, *scopes, **fields):
        return await self("POST", "/v1/keys", {"scopes": list(scopes), **fields})

    async def made(self, *scopes, **fields):
        answer = await self.make(*scopes, **fields)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def sees(self):
        return (await self("GET", "/v1/masks")).status_code == 200


@pytest.fixture
def caller(api):
    return lambda key: Caller(api, api.keys.get(key, key))


@pytest.fixture
async def operator(api, caller):
    made = await api.state.keys.create(("operator",))
    return caller(made[0])


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_key_is_made_used_listed_and_revoked(caller):
    admin = caller("admin")
    answer = await admin.make("infer", label="ci", expires="30d")
    made = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert well_formed(made["key"])
    assert (made["tenant"], made["scopes"], made["label"]) == ("default", ["infer"], "ci")
    days = datetime.fromisoformat(made["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < days <= timedelta(days=30)
    assert await caller(made["key"]).sees()
    listed = (await admin("GET", "/v1/keys")).json()
    assert {k["key_id"] for k in listed["data"]} > {made["key_id"]}
    shown = await admin("GET", f"/v1/keys/{made['key_id']}")
    assert shown.json()["status"] == "active"
    for answer in (listed, shown.json()):
        assert made["key"] not in str(answer)
        assert "key'" not in str(answer).replace("'object': 'key'", "")
    assert (await admin("DELETE", f"/v1/keys/{made['key_id']}")).status_code == 204
    assert not await caller(made["key"]).sees()
    again = await admin("DELETE", f"/v1/keys/{made['key_id']}")
    assert code(again) == (404, "key_unknown")


async def test_pages_are_by_id(caller):
    admin = caller("admin")
    for _ in range(3):
        await admin.made("infer")
    whole = [k["key_id"] for k in (await admin("GET", "/v1/keys")).json()["data"]]
    found, after, more = [], "", True
    while more:
        page = (await admin("GET", f"/v1/keys?limit=2&after={after}")).json()
        found += [k["key_id"] for k in page["data"]]
        after, more = page["last"], page["has_more"]
    assert found == whole == sorted(whole)


async def test_an_administrator_manages_its_tenant_alone(api, caller, operator):
    admin, other = caller("admin"), caller("other")
    mine, theirs = await admin.made("infer"), await other.made("infer")
    assert theirs["tenant"] == "other"
    assert code(await admin.make("infer", tenant="other")) == (403, "tenant_forbidden")
    assert code(await admin("GET", "/v1/keys?tenant=other")) == (403, "tenant_forbidden")
    listed = (await admin("GET", "/v1/keys")).json()["data"]
    assert {k["tenant"] for k in listed} == {"default"}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        foreign = await admin(method, f"/v1/keys/{theirs['key_id']}{path}", {})
        unknown = await admin(method, f"/v1/keys/{'0' * 8}{path}", {})
        assert code(foreign) == code(unknown) == (404, "key_unknown")
        assert (
            foreign.json()["error"]["message"].replace(theirs["key_id"], "0" * 8)
            == (unknown.json()["error"]["message"])
        )
    assert await caller(theirs["key"]).sees()
    # An operator manages all of them.
    everywhere = (await operator("GET", "/v1/keys")).json()["data"]
    assert {mine["key_id"], theirs["key_id"]} < {k["key_id"] for k in everywhere}
    some = (await operator("GET", "/v1/keys?tenant=other")).json()["data"]
    assert {k["tenant"] for k in some} == {"other"}
    made = await operator.made("admin", tenant="new-one")
    assert (await caller(made["key"]).made("infer"))["tenant"] == "new-one"
    assert (await operator("DELETE", f"/v1/keys/{theirs['key_id']}")).status_code == 204


async def test_no_key_gives_rights_that_it_does_not_have(api, caller, operator):
    """Every scope by every kind of key, and by way of keys that may more."""
    for scopes in (("admin",), ("operator",), ("infer", "upload", "promote")):
        made = await api.state.keys.create(scopes)
        by = caller(made[0])
        for scope in SCOPES:
            allowed = "operator" in scopes or ("admin" in scopes and scope != "operator")
            answer = await by.make(scope)
            assert answer.status_code == (201 if allowed else 403), (scopes, scope, answer.text)
    admin = caller("admin")
    more = await operator.made("operator", "infer")
    for method, path in (("DELETE", ""), ("POST", "/rotate")):
        answer = await admin(method, f"/v1/keys/{more['key_id']}{path}", {})
        assert code(answer) == (403, "scope_exceeded")
    assert await caller(more["key"]).sees()


async def test_no_key_makes_one_that_outlives_it(api, caller):
    secret, record = await api.state.keys.create(("admin",), expires="10d")
    by = caller(secret)
    late = {"expires": "11d"}, {"expires": None}, {}
    for fields in late:
        assert code(await by.make("infer", **fields)) == (403, "expiry_exceeded")
    made = await by.made("infer", expires="9d")
    assert code(await by("POST", f"/v1/keys/{made['key_id']}/rotate", late[0])) == (
        403,
        "expiry_exceeded",
    )
    own = f"/v1/keys/{record.key_id}/rotate"
    assert code(await by("POST", own, late[0])) == (403, "expiry_exceeded")
    forever = await caller("admin").made("infer")
    assert code(await by("POST", f"/v1/keys/{forever['key_id']}/rotate", {})) == (
        403,
        "expiry_exceeded",
    )
    answer = await by("POST", own, {"overlap": "0m"})
    assert answer.json()["expires"] == record.expires
    assert not await by.sees()
    assert await caller(answer.json()["key"]).sees()


async def test_a_rotated_key_works_for_the_overlap(api, caller):
    admin = caller("admin")
    made = await admin.made("infer", "upload", label="ci", expires="30d")
    answer = await admin("POST", f"/v1/keys/{made['key_id']}/rotate", {"overlap": "2h"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    new = answer.json()
    same = ("tenant", "scopes", "label", "expires")
    assert [new[name] for name in same] == [made[name] for name in same]
    assert new["key_id"] != made["key_id"]
    left = datetime.fromisoformat(new["replaces"]["expires"]) - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    assert await caller(made["key"]).sees()
    assert await caller(new["key"]).sees()
    # An overlap does not prolong a key.
    short = await admin.made("infer", expires="1h")
    answer = await admin(
        "POST", f"/v1/keys/{short['key_id']}/rotate", {"overlap": "2h", "expires": "30d"}
    )
    assert answer.json()["replaces"]["expires"] == short["expires"]
    assert answer.json()["expires"] > short["expires"]


async def test_a_rotated_key_keeps_the_limits_that_it_had(api, caller):
    admin = caller("admin")
    made = await admin.made("infer")
    path, limits = f"/v1/limits/keys/{made['key_id']}", {"requests_per_minute": 7}
    assert (await admin("PUT", path, limits)).status_code == 200
    new = (await admin("POST", f"/v1/keys/{made['key_id']}/rotate", {})).json()
    stored = (await admin("GET", "/v1/limits")).json()["keys"]
    assert stored == {made["key_id"]: limits, new["key_id"]: limits}
    assert (await admin("DELETE", f"/v1/keys/{made['key_id']}")).status_code == 204
    assert list((await admin("GET", "/v1/limits")).json()["keys"]) == [new["key_id"]]


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"scopes": []}, {"scopes": "infer"}, {"scopes": [1]}, {"scopes": ["root"]}),
        {"scopes": ["infer"] * 20},
        *({"scopes": ["infer"], "tenant": t} for t in ("default/sub", "Default", "", "a b", 5)),
        *({"scopes": ["infer"], "expires": e} for e in ("tomorrow", "0d", "2020-01-01T00:00Z", 5)),
        *({"scopes": ["infer"], "label": t} for t in ("a\nb", "x" * 200, "BMT_ADMIN_KEY", 5)),
        *({"scopes": ["infer"], "key": "x"}, [], 5, None),
    ],
    ids=str,
)
@pytest.mark.found
async def test_a_key_that_is_none_is_refused(operator, body):
    before = (await operator("GET", "/v1/keys")).json()["data"]
    answer = await operator("POST", "/v1/keys", body)
    # An empty tenant is the caller's own.
    if body == {"scopes": ["infer"], "tenant": ""}:
        assert answer.status_code == 201
        return
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert (await operator("GET", "/v1/keys")).json()["data"] == before


@pytest.mark.parametrize(
    "body",
    [{"overlap": o} for o in ("", "soon", "-1h", "91d", "999999w", 5)]
    + [{"expires": "yesterday"}, {"key": 1}],
    ids=str,
)
async def test_a_rotation_that_cannot_be_is_refused(caller, body):
    admin = caller("admin")
    made = await admin.made("infer")
    answer = await admin("POST", f"/v1/keys/{made['key_id']}/rotate", body)
    assert answer.status_code == 400, answer.text
    assert (await admin("GET", f"/v1/keys/{made['key_id']}")).json()["expires"] is None


async def test_bodies_and_numbers_are_bounded(caller, monkeypatch):
    admin = caller("admin")
    answer = await admin.make("infer", label="x" * 5000)
    assert answer.status_code == 413
    made = await admin.made("infer")
    there = len((await admin("GET", "/v1/keys")).json()["data"])
    monkeypatch.setattr(routes, "MAX_KEYS", there)
    assert code(await admin.make("infer")) == (400, "too_many_keys")
    # A replaced key stays in the list until it is revoked.
    answer = await admin("POST", f"/v1/keys/{made['key_id']}/rotate", {})
    assert code(answer) == (400, "too_many_keys")


async def test_reading_many_keys_leaves_turns_to_requests(api, monkeypatch):
    template = (await api.state.keys.create(("infer",)))[1].to_json()
    fields = {f"{number:064x}": template for number in range(4000)}
    await api.state.connection.quick.hset(KEYS, mapping=fields)
    turns, parsed = 0, []

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def read(digest, value):
        parsed.append(turns)
        return read_record(digest, value)

    monkeypatch.setattr(writer, "read_record", read)
    task = asyncio.create_task(others())
    try:
        assert len(await api.state.keys.records()) > 4000
    finally:
        task.cancel()
    assert max(Counter(parsed).values()) < 1000


async def test_a_server_that_asks_for_no_keys_makes_none(api, caller):
    api.replace(settings=replace(api.state.settings, no_auth=True))
    anyone = caller("")
    made = await api.state.keys.create(("infer",))
    for method, path in (
        *(("GET", ""), ("POST", ""), ("GET", f"/{made[1].key_id}")),
        *(("DELETE", f"/{made[1].key_id}"), ("POST", f"/{made[1].key_id}/rotate")),
    ):
        assert code(await anyone(method, f"/v1/keys{path}", {})) == (403, "no_auth")


@pytest.mark.found
async def test_an_upload_moves_latest_and_a_promotion_the_other_aliases(api, caller):
    """A training job's key cannot replace what is in production."""
    upload, promote = caller("upload"), caller("promote")
    first = (await api.put("m", make_mask(1), "upload")).json()
    second = (await api.put("m", make_mask(2), "upload")).json()
    refused = await api.put("m", make_mask(3), "upload", params={"alias": "prod"})
    assert code(refused) == (403, "scope_missing")
    assert (await api.put("m", make_mask(3), "promote")).status_code == 403
    to_first, prod = {"digest": first["digest"]}, "/v1/masks/m/aliases/prod"
    assert code(await upload("PUT", prod, to_first)) == (403, "scope_missing")
    assert (await promote("PUT", prod, to_first)).status_code == 200
    assert code(await upload("DELETE", prod)) == (403, "scope_missing")
    assert code(await promote("PUT", "/v1/masks/m/aliases/latest", to_first)) == (
        403,
        "scope_missing",
    )
    assert (await upload("PUT", "/v1/masks/m/aliases/latest", to_first)).status_code == 200
    assert (await promote("DELETE", prod)).status_code == 204
    both = await api.state.keys.create(("upload", "promote"))
    api.keys["both"] = both[0]
    done = await api.put("m", make_mask(2), "both", params={"alias": "prod"})
    assert done.json()["digest"] == second["digest"]
    assert done.json()["aliases"] == ["latest", "prod"]


def test_each_scope_has_its_place():
    """`promote` is no part of `upload`, and no scope of a tenant is `operator`'s."""
    from bmt_server.registry.schemas import Principal

    rights = {
        scope: {s for s in SCOPES if Principal("k", "t", frozenset({scope})).may(s)}
        for scope in SCOPES
    }
    assert rights["admin"] == set(SCOPES) - {"operator"}
    assert rights["operator"] == set(SCOPES)
    for one, other in itertools.permutations(set(SCOPES) - {"admin", "operator"}, 2):
        assert other not in rights[one]
