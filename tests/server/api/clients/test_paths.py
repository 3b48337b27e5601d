"""Spellings of a path, a root path in front of it, and names with slashes."""

from __future__ import annotations

import asyncio

import anthropic
import httpx2
import openai
import pytest
from bmt_client import BmtClient
from bmt_core import MaskRef
from bmt_server.api.paths import MASK_PARTS, app_scope, route_path
from bmt_server.api.permissions import ROUTES
from starlette._utils import get_route_path

from tests.support.http.raw import serving
from tests.support.replica import make_mask

SPELLINGS = ("{}", "/{}", "//{}", "{}/", "/{}/")


@pytest.fixture(params=["", "/masks", "/a/b", "/masks/"])
def root(api, request):
    """The replica with this root path, as vLLM sets it."""
    api.app.root_path = request.param
    return request.param.rstrip("/")


def seen(path: str, root: str = "", method: str = "GET") -> str:
    return route_path({"path": path, "root_path": root, "method": method})


@pytest.mark.parametrize("root", ["", "/masks"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/masks/m/pin", "/health", "/v1/models/a/b"])
def test_joined_base_urls_name_the_same_path(path, root):
    for spelling in SPELLINGS:
        if path.startswith("/v1/models/") and spelling.endswith("/"):
            continue  # an id may end with a slash
        assert seen(spelling.format(root + path), root) == path
        assert seen(spelling.format(path), root) == path
    assert seen(root + path.replace("/v1/", "//v1//"), root) == path


@pytest.mark.parametrize(
    "path",
    ["/v1/masks//pin", "/v1/masks/m//", "/v1//masks//versions", "/masks2/v1/models", "/masksv1/me"],
)
def test_an_empty_identifier_names_no_other_path(path):
    """Neither does a path that only begins with the letters of the root path."""
    assert seen(path, "/masks") == path.replace("/v1//", "/v1/")


async def test_a_change_without_its_last_identifier_changes_nothing(api):
    """As of a script whose variable is empty: `/v1/masks/m/$VERSION`."""
    stored = (await api.put("m", make_mask())).json()
    async with api.client("admin") as client:
        for method in ("DELETE", "PUT", "PATCH"):
            for rest in ("", "versions/", "aliases/", "pin/"):
                answer = await client.request(method, f"/v1/masks/m/{rest}", content=b"{}")
                assert answer.status_code in (400, 404), (method, rest)
        assert (await client.get("/v1/masks/m/")).json()["digest"] == stored["digest"]


@pytest.mark.parametrize("root", ["", "/masks", "/masks/"])
def test_routing_sees_the_path_that_was_authorized(root):
    for path in ("/", "", "//", "/masks", "/masks/", "/masks/masks/v1/me", "/v1", "/v1//", "*"):
        scope = {"path": path, "root_path": root, "method": "GET"}
        once = route_path(scope)
        assert once.startswith("/")
        assert "//" not in once
        assert get_route_path(app_scope(scope, once, method="GET")) == once


@pytest.mark.found
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_every_spelling_is_answered_with_a_key_alone(api, root, spelling):
    for path in ("/v1/models", "/v1/masks", "/v1/me"):
        asked = spelling.format(root + path)
        async with api.client("") as client:
            assert (await client.get(httpx2.URL(f"http://test{asked}"))).status_code == 401
        async with api.client("infer") as client:
            for method in ("GET", "HEAD"):
                answer = await client.request(method, httpx2.URL(f"http://test{asked}"))
                assert answer.status_code == 200
                assert bool(answer.content) == (method == "GET")
    async with api.client("infer") as client:
        answer = await client.post(
            httpx2.URL(f"http://test{spelling.format(root + '/v1/chat/completions')}"),
            json={"model": "tiny"},
        )
        assert (answer.status_code, answer.json()) == (200, {"model": "tiny"})


async def test_a_root_path_opens_nothing(api, root):
    """Routes that are closed, and prefixes that look like it, in front of what needs a key."""
    for path in ("/pause", "/docs", "/openapi.json", "/invocations", "/collective_rpc"):
        for prefix in (root, root + root, "/health", "/livez", root + "/health", "/health" + root):
            for key, status in (("", 401), ("admin", 404)):
                async with api.client(key) as client:
                    answer = await client.post(httpx2.URL(f"http://test{prefix}{path}"))
                    assert answer.status_code == status, (prefix, path, key)
    async with api.client("") as client:
        for prefix in (root, root + "/health", "/health" + root, root + "/ping/.."):
            answer = await client.get(f"{prefix}/v1/masks")
            assert answer.status_code == 401
        for name in ("X-Forwarded-Prefix", "X-Original-URL", "X-Rewrite-URL", "X-Script-Name"):
            for value in ("/health", "/livez", "/v1/masks", "/masks"):
                answer = await client.get("/v1/masks", headers={name: value})
                assert answer.status_code == 401


async def test_a_proxy_that_strips_the_root_path_may_say_so(api, root):
    async with api.client("infer") as client:
        for headers in ({}, {"X-Forwarded-Prefix": "/masks"}):
            assert (await client.get("/v1/me", headers=headers)).status_code == 200


async def test_clients_take_the_path_in_their_base_url(api):
    """Ours, OpenAI's and Anthropic's, also with a slash at the end."""
    api.app.root_path = "/masks"
    stored = (await api.put("m", make_mask())).json()
    key = api.keys["admin"]

    def ours(url: str) -> str:
        with BmtClient(url, key) as client:
            assert client.read("m")
            return client.get("m").digest

    async with serving(api.app) as port:
        base = f"http://127.0.0.1:{port}/masks"
        for slash in ("", "/"):
            for url in (f"{base}{slash}", f"{base}/v1{slash}"):
                assert await asyncio.to_thread(ours, url) == stored["digest"]
            async with openai.AsyncOpenAI(base_url=f"{base}/v1{slash}", api_key=key) as client:
                assert [m.id async for m in client.models.list()] == ["tiny", "m"]
            async with anthropic.AsyncAnthropic(base_url=f"{base}{slash}", api_key=key) as client:
                assert [m.id async for m in client.models.list()] == ["tiny", "m"]


@pytest.mark.found
@pytest.mark.parametrize("path", ["/health", "/ping", "/livez", "/readyz"])
async def test_probes_need_no_key(api, root, path):
    # Stand-ins of vLLM's.
    for name in ("/health", "/ping"):
        api.app.get(name)(lambda: None)
    for key in ("", "infer"):
        async with api.client(key) as client:
            for method in ("GET", "HEAD"):
                for asked in (path, root + path, f"{root}{path}/"):
                    assert (await client.request(method, asked)).status_code == 200
            assert (await client.post(path)).status_code == (404 if key else 401)


async def test_head_is_get_without_a_body_everywhere(api):
    stored = (await api.put("m", make_mask())).json()
    paths = ("/v1/models", "/v1/models/m", "/v1/me", "/v1/masks", "/v1/masks/m", "/v1/masks/none")
    async with serving(api.app) as port, httpx2.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {api.keys['infer']}"}
        for path in (*paths, f"/v1/blobs/{stored['file_digest']}", "/v1/masks/m/versions"):
            url = f"http://127.0.0.1:{port}{path}"
            got = await client.get(url, headers=headers)
            head = await client.head(url, headers=headers)
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert head.headers["content-type"] == got.headers["content-type"]


def test_the_parts_of_a_mask_are_those_of_the_routes():
    found = {
        route.path.pattern.split("[^/]+/")[1].split("/")[0]
        for route in ROUTES
        if route.path.pattern.startswith("/v1/masks/") and "[^/]+/" in route.path.pattern
    }
    assert found == MASK_PARTS


@pytest.mark.found
@pytest.mark.parametrize("name", ["acme/support-bot", "acme%2Fsupport-bot", "acme%2fsupport-bot"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "GET", "DELETE"])
async def test_a_name_of_the_hub_is_a_wrong_name_and_no_wrong_route(api, method, name):
    for rest in ("", "/versions", "/pin"):
        async with api.client("admin") as client:
            answer = await client.request(method, f"/v1/masks/{name}{rest}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "name_invalid")
        assert "'acme.support-bot'" in error["message"]
        async with api.client("") as client:
            assert (await client.request(method, f"/v1/masks/{name}{rest}")).status_code == 401


@pytest.mark.parametrize("name", ["acme%2Fpin", "acme%2Fversions", "m%2Faliases%2Fprod"])
async def test_an_encoded_slash_never_reaches_the_route_of_another_name(api, name):
    await api.put("acme", make_mask())
    await api.put("m", make_mask())
    async with api.client() as client:
        for method in ("GET", "PUT", "DELETE"):
            answer = await client.request(method, f"/v1/masks/{name}", json={"rev": 1})
            assert answer.status_code == 400
        assert not (await client.get("/v1/masks/acme")).json()["pinned"]
        assert (await client.get("/v1/masks/m")).json()["aliases"] == ["latest"]


@pytest.mark.parametrize("path", ["/v1/masks/m/flips", "/v1/masks/a/b/c/d", "/v1/masks/m/prune/x"])
async def test_what_is_no_name_has_no_route(api, path):
    async with api.client() as client:
        assert (await client.post(path)).json()["error"]["code"] == "route_not_found"


@pytest.mark.found
@pytest.mark.parametrize("name", ["Llama-3-SQL", "a__b", "rft@v2", "Math v2"])
async def test_a_refused_name_names_the_one_to_take(api, name):
    answer = await api.put(name, make_mask())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "name_invalid")
    proposed = error["message"].rpartition("use ")[2].strip("'")
    assert MaskRef.parse(proposed).name == proposed
    assert (await api.put(proposed, make_mask())).status_code == 201
