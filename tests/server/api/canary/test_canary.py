"""A canary over HTTP: set, answered by, sticky, conditioned, promoted, rolled back, refused."""

from __future__ import annotations

import pytest
from bmt_server.api.body.reader import parse_json
from bmt_server.api.canary.arm import Draw
from bmt_server.registry.schemas import BaseRef

from tests.support.replica import make_mask

MAIN, CANARY, OTHER = make_mask(1), make_mask(2), make_mask(3)
PATH = "/v1/masks/m/aliases/prod"


def canary(percent, mask=CANARY):
    return {"digest": mask.digest, "percent": percent}


@pytest.fixture
async def stored(api):
    """`m`: MAIN is `prod`, and CANARY and OTHER are further versions."""
    await api.put("m", MAIN, params={"alias": "prod"})
    await api.put("m", CANARY)
    await api.put("m", OTHER)
    return api


async def set_split(api, key="promote", headers=None, **body):
    async with api.client(key) as client:
        return await client.put(PATH, json={"digest": MAIN.digest, **body}, headers=headers)


async def ask(api, key="infer", path="/v1/chat/completions", headers=None, **body):
    async with api.client(key) as client:
        return await client.post(path, json={"model": "m:prod", **body}, headers=headers)


async def served(api, **more):
    """Mask that a request is answered by."""
    answer = await ask(api, **more)
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    assert answer.headers["x-bmt-model"] == model
    return next(m for m in (MAIN, CANARY, OTHER) if m.digest[:12] in model)


async def users_of_canary(api, count=200, **more):
    """Numbers of the users that the canary answers."""
    return {i for i in range(count) if await served(api, user=f"u{i}", **more) is CANARY}


async def test_a_share_of_users_gets_the_canary_and_keeps_it(stored):
    await set_split(stored, canary=canary(20))
    first = await users_of_canary(stored)
    assert 20 <= len(first) <= 62  # 40, and 3.9 standard deviations
    assert await users_of_canary(stored) == first
    await set_split(stored, canary=canary(60))
    more = await users_of_canary(stored)
    assert first < more
    await set_split(stored, canary=canary(100))
    assert await users_of_canary(stored, 20) == set(range(20))
    await set_split(stored, canary=canary(0))
    assert await users_of_canary(stored, 20) == set()


async def test_a_request_has_one_version_and_names_it(stored):
    """All choices and chunks of it are by the model that the app is asked for, once."""
    await set_split(stored, canary=canary(50))
    stored.hold.set()
    for i in range(20):
        before = len(stored.calls)
        answer = await ask(stored, stream=True, n=4, user=f"u{i}")
        assert stored.calls[before:] == [answer.json()["model"]] == [answer.headers["x-bmt-model"]]
    async with stored.client() as client:
        answer = await client.post("/v1/chat/completions", json={"model": "tiny"})
        assert "x-bmt-model" not in answer.headers


@pytest.mark.parametrize(
    ("body", "headers", "sticky"),
    [
        ({"user": "a"}, {}, ("user", "a")),
        ({"safety_identifier": "s", "user": "a"}, {"x-session-id": "x"}, ("user", "s")),
        ({"metadata": {"user_id": "a"}}, {}, ("user", "a")),
        ({"metadata": ["user_id"]}, {"x-session-id": "x"}, ("session", "x")),
        ({"user": ""}, {"x-session-id": "x"}, ("session", "x")),
        ({"user": None, "prompt_cache_key": "p"}, {}, ("request", "r")),
        ({}, {"x-session-id": ""}, ("request", "r")),
    ],
)
def test_the_order_of_what_a_request_is_sticky_by(body, headers, sticky):
    assert Draw.of_request(body, headers, "r").sticky == sticky


async def test_requests_without_user_and_session_are_drawn_by_themselves(stored):
    await set_split(stored, canary=canary(50))
    found = [await served(stored) for _ in range(60)]
    assert 10 <= found.count(CANARY) <= 50
    session = {"X-Session-ID": "one"}
    assert len({(await served(stored, headers=session)).digest for _ in range(10)}) == 1
    # A retry with the same request id is the same request.
    again = {"X-Request-ID": "retried"}
    assert len({(await served(stored, headers=again)).digest for _ in range(10)}) == 1


async def test_any_text_may_be_a_user(stored):
    await set_split(stored, canary=canary(50))
    for user in ("ü数😀", "x" * 1000, "a\x00b", " "):
        assert (await served(stored, user=user)) is (await served(stored, user=user))
    assert parse_json(b'{"user": "\\u00fc"}')["user"] == "ü"


async def test_a_condition_names_one_of_the_two(stored):
    await set_split(stored, canary=canary(50))
    for mask in (MAIN, CANARY):
        for i in range(10):
            headers = {"If-Match": mask.digest}
            assert await served(stored, headers=headers, user=f"u{i}") is mask
    headers = {"If-Match": f"{MAIN.digest}, {CANARY.digest}"}
    both = {i for i in range(40) if await served(stored, headers=headers, user=f"u{i}") is CANARY}
    assert both == await users_of_canary(stored, 40)
    answer = await ask(stored, headers={"If-Match": OTHER.digest})
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "precondition_failed")


async def test_counts_of_tokens_and_lists_are_of_the_main_version(stored):
    await set_split(stored, canary=canary(100))
    answer = await ask(stored, path="/tokenize")
    assert MAIN.digest[:12] in answer.json()["model"]
    async with stored.client("infer") as client:
        assert (await client.get("/v1/masks/m:prod")).json()["digest"] == MAIN.digest
        assert (await client.get("/v1/models/m:prod")).json()["root"] == f"m@{MAIN.digest[:12]}"


async def test_an_alias_is_shown_with_its_split(stored):
    async with stored.client("infer") as client:
        plain = await client.get(PATH)
        assert plain.headers["etag"] == f'"{MAIN.digest}"'
        assert (plain.json()["canary"], plain.json()["shadow"]) == (None, None)
        shadow = {"rev": 3, "percent": 12.5}
        put = (await set_split(stored, canary=canary(5), shadow=shadow)).json()
        shown = (await client.get(PATH)).json()
        assert shown == {key: put[key] for key in shown}
        assert shown["digest"] == MAIN.digest
        assert shown["canary"] == {
            "digest": CANARY.digest,
            "rev": 2,
            "model": f"m@{CANARY.digest[:12]}",
            "percent": 5.0,
        }
        assert (shown["shadow"]["digest"], shown["shadow"]["percent"]) == (OTHER.digest, 12.5)
        version = (await client.get(f"/v1/masks/m@{CANARY.digest}")).json()
        assert (version["canary_of"], version["shadow_of"]) == ({"prod": 5.0}, {})
        latest = (await client.get("/v1/masks/m/aliases/latest")).json()
        assert (latest["digest"], latest["canary"]) == (OTHER.digest, None)
        assert (await client.get("/v1/masks/m/aliases/none")).status_code == 404
        wrong = await client.get(PATH, headers={"If-Match": CANARY.digest})
        assert wrong.status_code == 412
    async with stored.client("other") as client:
        assert (await client.get(PATH)).status_code == 404


async def test_promote_and_rollback_are_one_call_each(stored, caplog):
    async def post(what, key="promote", headers=None, **body):
        async with stored.client(key) as client:
            return await client.post(f"{PATH}/{what}", json=body, headers=headers)

    for what in ("promote", "rollback"):
        refused = await post(what)
        assert (refused.status_code, refused.json()["error"]["code"]) == (412, "no_canary")
        for key, status in (("", 401), ("infer", 403), ("upload", 403), ("other", 404)):
            assert (await post(what, key)).status_code == status
    await set_split(stored, canary=canary(100))
    assert await served(stored) is CANARY
    back = await post("rollback", headers={"If-Match": MAIN.digest[:12]})
    assert (back.status_code, back.json()["digest"], back.json()["canary"]) == (
        200,
        MAIN.digest,
        None,
    )
    assert await served(stored) is MAIN
    await set_split(stored, canary=canary(5))
    for headers, body in (
        ({"If-Match": CANARY.digest}, {}),
        ({}, {"canary": OTHER.digest}),
    ):
        assert (await post("promote", headers=headers, **body)).status_code == 412
    for body in ({"canary": "x"}, {"percent": 3}):
        assert (await post("promote", **body)).status_code == 400
    done = await post("promote", headers={"If-Match": MAIN.digest}, canary=CANARY.digest)
    assert (done.status_code, done.json()["digest"]) == (200, CANARY.digest)
    assert await served(stored) is CANARY
    audited = [r.action for r in caplog.records if r.name.endswith(".audit")]
    assert audited[-4:] == ["alias", "rollback", "alias", "promote"]


@pytest.mark.parametrize("what", ["promote", "rollback"])
async def test_aliases_that_have_no_split_to_end(stored, what):
    """An alias that does not exist was said to get `m@` for all its requests."""
    async with stored.client("promote") as client:
        for alias, status, code in (
            ("none", 404, "mask_not_found"),
            ("latest", 400, "alias_reserved"),
        ):
            answer = await client.post(f"/v1/masks/m/aliases/{alias}/{what}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


REFUSED = [
    ({"canary": canary(101)}, "field_out_of_bounds"),
    ({"canary": canary(-1)}, "field_out_of_bounds"),
    ({"canary": canary(0.001)}, "field_out_of_bounds"),
    ({"canary": canary("5")}, "bad_request"),
    ({"canary": canary(True)}, "bad_request"),
    ({"canary": {"digest": CANARY.digest}}, "bad_request"),
    ({"canary": {"percent": 5}}, "bad_request"),
    ({"canary": {"digest": CANARY.digest, "rev": 2, "percent": 5}}, "bad_request"),
    ({"canary": {"digest": "0" * 12, "percent": 5}}, "version_not_found"),
    ({"canary": canary(5, MAIN)}, "split_of_one"),
    ({"shadow": canary(5, MAIN)}, "split_of_one"),
    ({"shadow": canary(200)}, "field_out_of_bounds"),
    ({"canari": canary(5)}, "bad_request"),
]


async def test_a_split_that_cannot_be_kept_is_refused(stored):
    for body, code in REFUSED:
        answer = await set_split(stored, **body)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["code"] == code, body
        assert stored.state.replica.get("default", "m").splits == {}


async def test_refused_on_latest_and_for_a_mask_of_another_base(stored):
    async with stored.client() as client:
        answer = await client.put(
            "/v1/masks/m/aliases/latest", json={"digest": MAIN.digest, "canary": canary(5)}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "alias_reserved")
    # As a server of another base publishes it on the same registry.
    registry, state = stored.state.registry, stored.state.replica.get("default", "m")
    version = state.versions[CANARY.digest].model_copy(
        update={"digest": "d" * 64, "base": BaseRef(model_id="big", fingerprint="f" * 64)}
    )
    await registry.publish(version, b"bytes")
    await stored.state.replica.refresh("default", "m", ["d" * 64])
    answer = await set_split(stored, canary={"digest": "d" * 64, "percent": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "base_mismatch")


async def test_a_condition_on_a_change_is_about_the_main_version(stored):
    for wrong in (CANARY, OTHER):
        answer = await set_split(stored, headers={"If-Match": wrong.digest}, canary=canary(5))
        assert answer.status_code == 412
    answer = await set_split(stored, headers={"If-Match": f'"{MAIN.digest}"'}, canary=canary(5))
    assert answer.status_code == 200


async def test_tenants_have_splits_of_their_own(stored):
    await stored.put("m", MAIN, "other", params={"alias": "prod"})
    await stored.put("m", CANARY, "other")
    await set_split(stored, canary=canary(50))
    for i in range(20):
        assert await served(stored, key="other", user=f"u{i}") is MAIN
    await set_split(stored, "other", canary=canary(50))
    mine = await users_of_canary(stored)
    theirs = await users_of_canary(stored, key="other")
    # Independent: the same user of two tenants is two users.
    assert 20 <= len(mine & theirs) <= 80
