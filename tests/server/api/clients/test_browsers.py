"""Cross-origin requests of browsers: preflights without a key, and answers that a page can read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from bmt_server.api.middleware import RequestMiddleware
from fastapi.middleware.cors import CORSMiddleware

from tests.support.http.raw import head, serving
from tests.support.replica import make_mask

PAGE = "http://ui.local"
ASKED = "/v1/chat/completions"


@pytest.fixture
def browse(api):
    """The replica behind vLLM's layer for browsers, with these origins allowed."""

    def allow(*origins, credentials=False):
        api.app.user_middleware.clear()
        api.app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_credentials=credentials,
            allow_methods=["*"],
            allow_headers=["*"],
        )
        api.app.add_middleware(RequestMiddleware)
        api.app.state.args = SimpleNamespace(
            allowed_origins=list(origins), allow_credentials=credentials
        )

    return allow


async def preflight(api, path=ASKED, method="POST", origin=PAGE, key=""):
    async with api.client(key) as client:
        return await client.options(
            path,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )


@pytest.mark.found
@pytest.mark.parametrize("origins", [("*",), (PAGE,), (PAGE, "http://b")])
async def test_a_page_may_ask_and_reads_every_answer(api, browse, origins):
    browse(*origins)
    answer = await preflight(api)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", PAGE)
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    await api.put("m", make_mask())
    for key, body, status in (
        ("infer", {"model": "tiny"}, 200),
        ("", {"model": "tiny"}, 401),
        ("upload", {"model": "tiny"}, 403),
        ("infer", {"model": "none"}, 404),
        ("infer", {"model": 5}, 400),
    ):
        async with api.client(key) as client:
            answer = await client.post(ASKED, json=body, headers={"Origin": PAGE})
        assert answer.status_code == status
        assert answer.headers.get_list("access-control-allow-origin") in (["*"], [PAGE])


async def test_other_origins_read_nothing(api, browse):
    browse("http://b")
    answer = await preflight(api)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"]
    assert "access-control-allow-origin" not in answer.headers
    async with api.client("infer") as client:
        for body in ({"model": "tiny"}, {"model": "none"}):
            answer = await client.post(ASKED, json=body, headers={"Origin": PAGE})
            assert "access-control-allow-origin" not in answer.headers


async def test_credentials_name_the_origin(api, browse):
    browse("*", credentials=True)
    async with api.client("") as client:
        answer = await client.post(ASKED, json={}, headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("path", "method"), [("/pause", "POST"), (ASKED, "GET"), (ASKED, "TRACE"), ("/docs", "GET")]
)
async def test_preflights_of_what_is_closed_need_a_key_and_find_nothing(api, browse, path, method):
    browse("*")
    assert (await preflight(api, path, method)).status_code == 401
    assert (await preflight(api, path, method, key="admin")).status_code == 404


async def test_an_options_request_that_is_no_preflight_needs_a_key(api, browse):
    browse("*")
    async with api.client("") as client:
        assert (await client.options(ASKED)).status_code == 401
        assert (await client.options(ASKED, headers={"Origin": PAGE})).status_code == 401


async def test_a_page_reads_the_headers_that_clients_act_on(api, browse):
    """Of errors and streams too; browsers show others than a few only if they are named."""
    browse(PAGE)
    stored = (await api.put("m", make_mask())).json()
    api.hold.set()
    for key, method, path, body in (
        ("infer", "POST", ASKED, {"model": "m"}),
        ("infer", "POST", ASKED, {"model": "m", "stream": True}),
        ("", "POST", ASKED, {"model": "m"}),
        ("infer", "POST", ASKED, {"model": "none"}),
        ("infer", "GET", "/v1/models", None),
        ("infer", "GET", "/v1/masks/m", None),
        ("infer", "GET", f"/v1/blobs/{stored['file_digest']}", None),
        ("", "GET", "/readyz", None),
    ):
        async with api.client(key) as client:
            answer = await client.request(method, path, json=body, headers={"Origin": PAGE})
            shown = answer.headers["access-control-expose-headers"].split(", ")
            assert "x-request-id" in shown
            for name in ("etag", "retry-after", "www-authenticate"):
                assert (name in answer.headers) == (name in shown)
            other = await client.request(method, path, json=body, headers={"Origin": "http://c"})
            assert not any(name.startswith("access-control") for name in other.headers)


async def heard(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"X-Long": "a" * 40_000}, b"431"),
        ({"Content-Length": "5", "Content-Type": "application/json"}, b"408"),
    ],
)
async def test_a_page_reads_the_errors_of_the_protocol(api, browse, fields, status):
    browse(PAGE)
    async with serving(api.app, body_timeout_s=0.2) as port:
        for origin, readable in ((PAGE, True), ("http://c", False)):
            answer = await heard(port, head(api, Origin=origin, **fields))
            assert answer.startswith(b"http/1.1 " + status)
            line = f"access-control-allow-origin: {origin}".encode()
            assert (line in answer) == readable
