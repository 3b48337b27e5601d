"""Cross-origin requests of browsers: preflights without a key, and answers that a page can read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bmt_server.api.middleware import RequestMiddleware
from fastapi.middleware.cors import CORSMiddleware

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
