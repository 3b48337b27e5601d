"""The route of imports: sources, what is kept and logged of them, tenants, conditions, limits."""

from __future__ import annotations

import asyncio
import hashlib
import json

import bmt_core
import httpx
import pytest
from bmt_server.registry.schemas import Version

from tests.support.blobs.object_store import S3
from tests.support.http.sources import redirect, response
from tests.support.replica import make_mask

FILE = bmt_core.encode(make_mask(1))
DIGEST = hashlib.sha256(FILE).hexdigest()
COMMIT = "0a1b" * 10


async def post(api, name, source, key="upload", body=None, **options):
    async with api.client(key) as client:
        body = {"source": source} if body is None else body
        return await client.post(f"/v1/masks/{name}/import", json=body, **options)


def code_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_file_is_published_as_an_upload_is(api, server, imports_from, lines):
    imports_from(f"https://files.test:{server.port}")
    server.answers["/m.bmt"] = response(FILE)
    answer = await post(api, "m", server.url("/m.bmt?X-Amz-Signature=s3cret"))
    assert answer.status_code == 201
    version = answer.json()
    assert (version["digest"], version["file_digest"]) == (make_mask(1).digest, DIGEST)
    assert version["outcome"] == "created"
    # The query of a signed URL is a credential: neither kept nor logged.
    assert version["imported_from"] == server.url("/m.bmt")
    (line,) = lines()
    assert (line.action, line.source) == ("import", server.url("/m.bmt"))
    assert (line.source_address, line.object) == ("127.0.0.1", version["model"])
    assert "s3cret" not in str(vars(line))
    async with api.client("admin") as client:
        shown = (await client.get("/v1/masks/m")).json()
        assert shown["published_by"]["key_id"] == line.key_id
        assert (await client.get(f"/v1/blobs/{DIGEST}")).content == FILE
    assert (await api.ask("m")).status_code == 200
    again = await post(api, "m", server.url("/m.bmt"), key="admin")
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")


async def test_uploads_have_no_source_and_cannot_state_one(api):
    stored = (await api.put("m", make_mask(2))).json()
    assert stored["imported_from"] is None


def test_versions_of_servers_before_imports_and_for_them():
    raw = {
        "name": "m",
        "digest": "0" * 64,
        "file_digest": "0" * 64,
        "created": "2026-01-01T00:00:00+00:00",
        **{"bytes": 1, "zeros": 1, "sparsity": 0.1},
        "base": {"model_id": "tiny", "fingerprint": "0" * 64},
    }
    version = Version.from_entry(json.dumps(raw))
    assert version.imported_from is None
    assert "imported_from" not in version.to_entry()
    kept = version.model_copy(update={"imported_from": "hf://acme/m/f"})
    assert Version.from_entry(kept.to_entry()).imported_from == "hf://acme/m/f"


async def test_without_the_operators_list_nothing_is_asked_for(api, server, imports_from):
    server.answers["/m.bmt"] = response(FILE)
    answer = await post(api, "m", server.url("/m.bmt"))
    assert code_of(answer) == (403, "imports_off")
    assert "--import-from" in answer.json()["error"]["message"]
    names = imports_from("https://other.test")
    assert code_of(await post(api, "m", server.url("/m.bmt"))) == (403, "source_not_allowed")
    assert (names.calls, server.connections) == ([], 0)


async def test_a_file_that_is_no_mask_of_this_base_is_refused(api, server, imports_from, lines):
    imports_from(f"https://files.test:{server.port}")
    for number, data in enumerate((b"nonsense", FILE[:-1], FILE[:-1] + b"x", b"")):
        server.answers[f"/{number}"] = response(data)
        assert (await post(api, "m", server.url(f"/{number}"))).status_code == 422
    server.answers["/large"] = response(b"x" * (api.state.max_upload_bytes + 1))
    assert code_of(await post(api, "m", server.url("/large"))) == (413, "too_large")
    server.answers["/m"] = response(FILE)
    wrong = await post(api, "m", server.url("/m"), params={"digest": "0" * 64})
    assert code_of(wrong) == (400, "digest_mismatch")
    right = await post(api, "m", server.url("/m"), params={"digest": f"sha256:{DIGEST}"})
    assert right.status_code == 201
    assert len(lines()) == 1
    assert api.state.uploads._of_key == {}
    assert api.state.importer._of_key == {}


async def test_conditions_aliases_and_names_are_those_of_uploads(api, server, imports_from):
    imports_from(f"https://files.test:{server.port}")
    server.answers["/m"] = response(FILE)
    url = server.url("/m")
    assert code_of(await post(api, "tiny", url)) == (400, "name_reserved")
    assert code_of(await post(api, "Math", url)) == (400, "name_invalid")
    assert code_of(await post(api, "acme/bot", url)) == (400, "name_invalid")
    assert code_of(await post(api, "m", url, params={"expires": "1h"})) == (400, "expiry_refused")
    promoting = await post(api, "m", url, params={"alias": "prod"})
    assert code_of(promoting) == (403, "scope_missing")
    assert server.connections == 0
    stale = await post(api, "m", url, headers={"If-Match": f'"{make_mask(2).digest}"'})
    assert code_of(stale) == (412, "precondition_failed")
    first = await post(api, "m", url, headers={"If-None-Match": "*"})
    assert first.status_code == 201
    await api.put("n", make_mask(2))
    second = await post(api, "n", url, headers={"If-None-Match": "*"})
    assert code_of(second) == (412, "precondition_failed")
    moved = await post(api, "n", url, key="admin", params={"alias": "prod"})
    assert moved.json()["aliases"] == ["latest", "prod"]
    expiring = await post(api, "rollout-a", url, params={"expires": "1h"})
    assert expiring.json()["expires"]


@pytest.mark.parametrize(
    "body", [{}, {"source": 5}, {"source": "math:prod", "path": "/x"}, [], {"source": "x" * 9000}]
)
async def test_bodies_that_name_no_source(api, body):
    answer = await post(api, "m", "", body=body)
    assert answer.status_code in (400, 413)


async def test_files_of_the_tenant_and_of_no_other(api, lines):
    """The answers for another tenant's file and for none are the same, but for the names given."""
    stored = (await api.put("m", make_mask(1))).json()
    copied = await post(api, "copy", f"sha256:{DIGEST}")
    assert copied.status_code == 201
    assert copied.json()["imported_from"] == f"sha256:{DIGEST}"
    pinned = await post(api, "copy2", f"m@{stored['digest']}")
    assert pinned.json()["imported_from"] == stored["model"]
    assert lines()[-1].source == stored["model"]
    foreign = await post(api, "copy", f"sha256:{DIGEST}", key="other")
    unknown = await post(api, "copy", f"sha256:{'0' * 64}", key="other")
    assert code_of(foreign) == code_of(unknown) == (404, "blob_unknown")

    def masked(answer, digest):
        text = answer.json()["error"]["message"]
        return text.replace(digest[:12], "").replace(digest, "")

    assert masked(foreign, DIGEST) == masked(unknown, "0" * 64)
    foreign = await post(api, "copy", f"m@{stored['digest'][:12]}", key="other")
    unknown = await post(api, "copy", f"none@{stored['digest'][:12]}", key="other")
    assert code_of(foreign) == code_of(unknown) == (404, "model_not_found")


async def test_a_file_of_the_hub(api, server, imports_from, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"https://hub.test:{server.port}")
    monkeypatch.setenv("HF_TOKEN", "hf_operators_secret")
    imports_from(f"hf://acme,https://files.test:{server.port}/storage")
    server.answers["/acme/masks/resolve/main/dir/m.bmt"] = response(
        status="302 Found",
        Location=server.url("/storage/x?Signature=s"),
        X_Repo_Commit=COMMIT,
    )
    server.answers["/storage/x"] = response(FILE)
    answer = await post(api, "m", "hf://acme/masks/dir/m.bmt")
    assert answer.status_code == 201
    # The commit that was read, because a branch moves.
    assert answer.json()["imported_from"] == f"hf://acme/masks@{COMMIT}/dir/m.bmt"
    (_, first), (_, second) = server.seen
    assert first["authorization"] == "Bearer hf_operators_secret"
    assert "authorization" not in second
    revision = "/acme/masks/resolve/refs%2Fpr%2F1/m.bmt"
    server.answers[revision] = response(FILE)
    answer = await post(api, "m", "hf://acme/masks@refs%2Fpr%2F1/m.bmt")
    assert answer.json()["outcome"] == "unchanged"
    for source, status in (
        ("hf://acme/masks/none.bmt", (404, "source_not_found")),
        ("hf://evil/masks/m.bmt", (403, "source_not_allowed")),
        ("hf://acme/masks", (400, "source_invalid")),
    ):
        assert code_of(await post(api, "m", source)) == status


async def test_the_hubs_token_goes_to_the_hub_alone(api, server, imports_from, monkeypatch):
    """Neither by a redirect to another host or port, nor over plain HTTP."""
    monkeypatch.setenv("HF_ENDPOINT", f"https://hub.test:{server.port}")
    monkeypatch.setenv("HF_TOKEN", "hf_operators_secret")
    imports_from("hf://")
    server.answers["/acme/m/resolve/main/f"] = redirect(server.url("/steal", "other.test"))
    answer = await post(api, "m", "hf://acme/m/f")
    assert code_of(answer) == (403, "source_not_allowed")
    assert [path for path, _ in server.seen] == ["/acme/m/resolve/main/f"]
    assert "hf_operators_secret" not in answer.text


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    store = S3(tmp_path_factory.mktemp("s3"))
    store.start()
    yield store
    store.close()


async def test_an_object_of_s3(api, s3, imports_from, monkeypatch):
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    imports_from("s3://masks/team,s3://none")

    def put(key, data):
        httpx.put(f"{s3.endpoint}/masks/{key}", content=data).raise_for_status()

    await asyncio.to_thread(put, "team/m.bmt", FILE)
    await asyncio.to_thread(put, "other/m.bmt", FILE)
    await asyncio.to_thread(put, "team/large", b"x" * (api.state.max_upload_bytes + 1))
    answer = await post(api, "m", "s3://masks/team/m.bmt")
    assert answer.status_code == 201, answer.text
    assert answer.json()["imported_from"] == "s3://masks/team/m.bmt"
    for source, status in (
        ("s3://masks/other/m.bmt", (403, "source_not_allowed")),
        ("s3://masks/team/none", (404, "source_not_found")),
        ("s3://none/m.bmt", (404, "source_not_found")),
        ("s3://masks/team/large", (413, "too_large")),
    ):
        assert code_of(await post(api, "m", source)) == status, source
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    down = await post(api, "m", "s3://masks/team/m.bmt")
    assert code_of(down) == (503, "source_unavailable")
    assert down.headers["retry-after"]
    assert "127.0.0.1" not in down.text


async def test_slow_sources_take_no_place_of_uploads(api, server, imports_from):
    imports_from(f"https://files.test:{server.port}")
    gone = asyncio.Event()

    async def hang(writer):
        await gone.wait()

    server.answers["/m"] = hang
    running = [asyncio.create_task(post(api, "m", server.url("/m"))) for _ in range(4)]
    while server.connections < 4:
        await asyncio.sleep(0.01)
    assert code_of(await post(api, "m", server.url("/m"))) == (429, "too_many_at_once")
    assert (await api.put("n", make_mask(2))).status_code == 201
    gone.set()
    answers = await asyncio.gather(*running)
    assert {code_of(answer) for answer in answers} == {(503, "source_unavailable")}
