"""`If-Match`: an answer by exactly that version, a change of exactly that version, or 412."""

from __future__ import annotations

import pytest
from bmt_server.api.masks.condition import Condition
from bmt_server.errors import BadRequest

from tests.support.replica import make_mask

ONE, TWO = make_mask(1), make_mask(2)


@pytest.fixture
async def stored(api):
    """`m`: its latest is TWO, and `prod` is ONE."""
    await api.put("m", ONE, params={"alias": "prod"})
    await api.put("m", TWO)
    return api


async def ask(api, model, value, key="infer", path="/v1/chat/completions"):
    async with api.client(key) as client:
        headers = [("If-Match", one) for one in ([value] if isinstance(value, str) else value)]
        return await client.post(path, json={"model": model}, headers=headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_an_answer_is_by_the_version_that_must_match(stored, path):
    one, two = ONE.digest, TWO.digest
    for model, value, status in (
        *(("m", v, 200) for v in (f'"{two}"', two, two[:12], f'"m@{two[:12]}"', f'W/"{two}"')),
        *(("m", v, 412) for v in (f'"{one}"', one[:12], f"m@{one[:12]}", f"n@{two[:12]}")),
        *(("m:prod", v, 200) for v in (one, f'"m@{one}"', f'"{two}", "{one}"', [two, one])),
        *(("m:prod", v, 412) for v in (two, "0" * 64)),
        (f"m@{one[:12]}", one, 200),
        (f"m@{one[:12]}", two, 412),
        ("tiny", one, 412),
        ("none", one, 404),
    ):
        before = len(stored.calls)
        answer = await ask(stored, model, value, path=path)
        assert answer.status_code == status, (model, value, answer.text)
        if status == 412:
            assert answer.json()["error"]["code"] == "precondition_failed"
            assert len(stored.calls) == before


async def test_a_version_of_a_tenant_is_named_as_its_answers_name_it(api):
    await api.put("m", ONE, "other")
    model = (await api.ask("m", "other")).json()["model"]
    assert model == f"other/m@{ONE.digest[:12]}"
    assert (await ask(api, "m", f'"{model}"', "other")).status_code == 200
    assert (await ask(api, "m", f"default/m@{ONE.digest[:12]}", "other")).status_code == 412


@pytest.mark.parametrize(
    "value",
    ["", "*", '""', "x", "3f9c", "m:prod", '"m@"', "@" + "0" * 12, "M@" + "0" * 12, "0" * 65]
    + ["A" * 64, '"' + "0" * 64, ("0" * 64 + ", ") * 40],
)
async def test_a_condition_that_cannot_be_read_is_refused(stored, value):
    with pytest.raises(BadRequest):
        Condition.read(value)
    answer = await ask(stored, "m", value)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_invalid")
    async with stored.client() as client:
        headers = {"If-Match": value}
        for answer in (
            await client.put("/v1/masks/m/aliases/prod", json={"rev": 1}, headers=headers),
            await client.delete("/v1/masks/m/aliases/prod", headers=headers),
            await client.delete("/v1/masks/m", headers=headers),
        ):
            assert answer.status_code == 400
    assert stored.calls == []


async def test_an_alias_is_moved_and_removed_if_it_is_that_version(stored):
    one, two = ONE.digest, TWO.digest
    path = "/v1/masks/m/aliases/prod"
    async with stored.client("promote") as client:

        async def move(value):
            target = {"digest": two}
            return (await client.put(path, json=target, headers={"If-Match": value})).status_code

        for wrong in (two, two[:12], f"m@{two[:12]}", f"n@{one[:12]}", "0" * 12, "0" * 64):
            assert await move(wrong) == 412, wrong
            answer = await client.delete(path, headers={"If-Match": wrong})
            assert answer.status_code == 412, wrong
        assert await move(f"other/m@{one[:12]}") == 412
        assert await move(f'"n@{two[:12]}", "default/m@{one[:12]}"') == 200
        assert await move(one[:12]) == 412
        answer = await client.delete(path, headers={"If-Match": f"{one}, {two[:20]}"})
        assert answer.status_code == 204


async def test_a_version_is_shown_and_removed_if_it_is_that_version(stored):
    three = make_mask(3)
    await stored.put("m", three)
    two = TWO.digest
    async with stored.client() as client:
        for method, path in (
            ("GET", f"/v1/masks/m@{two}"),
            ("DELETE", f"/v1/masks/m/versions/{two}"),
            ("DELETE", f"/v1/models/m@{two[:12]}"),
        ):
            for wrong in (ONE.digest, three.digest[:12], f"n@{two[:12]}"):
                answer = await client.request(method, path, headers={"If-Match": wrong})
                assert answer.status_code == 412, (method, path, wrong)
        headers = {"If-Match": f'"m@{two[:12]}"'}
        assert (await client.get(f"/v1/masks/m@{two}", headers=headers)).status_code == 200
        answer = await client.delete(f"/v1/masks/m/versions/{two}", headers=headers)
        assert answer.status_code == 204


async def test_a_change_that_replaces_no_version_refuses_a_condition(stored):
    """A condition that is left out would be a change that its caller ruled out."""
    headers = {"If-Match": ONE.digest}
    async with stored.client() as client:
        for method, path, body in (
            *(("PUT", "/v1/masks/m/pin", None), ("DELETE", "/v1/masks/m/pin", None)),
            ("POST", "/v1/masks/m/prune?keep_last=1", None),
            ("PUT", "/v1/masks/m/retention", {"keep_last": 1}),
            ("DELETE", "/v1/masks/m/retention", None),
            ("PUT", "/v1/limits/tenants/default", {}),
            ("POST", "/v1/keys", {"scopes": ["infer"]}),
        ):
            answer = await client.request(method, path, json=body, headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "condition_refused"), path
        assert len((await client.get("/v1/masks/m/versions")).json()["data"]) == 2


async def test_a_first_version_alone(stored):
    for value, status in (("*", 412), ('"*"', 400), (f'"{ONE.digest}"', 400)):
        answer = await stored.put("m", make_mask(3), headers={"If-None-Match": value})
        assert answer.status_code == status, value
    assert (await stored.put("n", ONE, headers={"If-None-Match": "*"})).status_code == 201
    async with stored.client() as client:
        path, to = "/v1/masks/m/aliases/prod", {"digest": TWO.digest}
        answer = await client.put(path, json=to, headers={"If-None-Match": "*"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "condition_refused")
        assert (await client.get("/v1/masks/m:prod")).json()["digest"] == ONE.digest


async def test_a_name_and_an_upload_take_versions_too(stored):
    async with stored.client() as client:
        shown = await client.get("/v1/masks/m")
        assert shown.headers["etag"] == f'"{TWO.digest}"'
        for value, status in ((ONE.digest[:12], 412), (shown.headers["etag"], 201)):
            answer = await stored.put("m", make_mask(3), headers={"If-Match": value})
            assert answer.status_code == status
        answer = await client.delete("/v1/masks/m", headers={"If-Match": TWO.digest[:12]})
        assert answer.status_code == 412
        latest = f"m@{make_mask(3).digest[:12]}"
        answer = await client.delete("/v1/masks/m", headers={"If-Match": latest})
        assert answer.status_code == 204
        answer = await stored.put("new", ONE, headers={"If-Match": "0" * 12})
        assert answer.status_code == 412
