"""Sessions: sign-in, cookies, forms of other sites, the end of a session and of its key."""

from __future__ import annotations

import asyncio
import re

import bmt_core
import pytest
from bmt_server.api.permissions import find_route
from bmt_server.console.router import build_console
from bmt_server.registry import sessions
from bmt_server.registry.api_keys import make_key

from tests.support.replica import make_mask, replica

PUBLIC = {"/console/sign-in", "/console/static/{name}"}
ROUTES = [
    (method, re.sub(r"\{\w+\}", "x", route.path))
    for route in build_console().routes
    for method in sorted(route.methods)
    if method != "HEAD" and route.path not in PUBLIC
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_a_session_every_page_leads_to_the_sign_in(visit, method, path):
    route = find_route(method, path)
    assert route is not None
    assert route.scope == "session"
    browser = await visit("")
    for cookie in ("", "x", "0" * 43, f"id~{'A' * 43}", f"../../x~{'A' * 43}"):
        headers = {"Cookie": f"bmt_console={cookie}"} if cookie else {}
        answer = await browser.client.request(method, path, headers=headers)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/console/sign-in")
        script = {**headers, "Sec-Fetch-Dest": "empty"}
        assert (await browser.client.request(method, path, headers=script)).status_code == 401


async def test_an_api_key_alone_opens_no_page(site):
    async with site.client("admin") as client:
        assert (await client.get("/console/masks")).status_code == 303


async def test_a_session_ends_with_its_sign_out_on_every_server(site, visit, valkey, tmp_path):
    browser = await visit("admin")
    assert (await browser.get("/masks")).status_code == 200
    cookie = browser.client.cookies["bmt_console"]
    async with replica(valkey.url, tmp_path / "second", files_url="") as second:
        there = await visit("", api=second)
        there.client.cookies.set("bmt_console", cookie)
        assert (await there.get("/masks")).status_code == 200
        assert (await browser.send("/masks", "/sign-out")).status_code == 303
        for one in (browser, there):
            one.client.cookies.set("bmt_console", cookie)
            assert (await one.get("/masks")).status_code == 303


async def test_a_session_ends_with_its_key(site, visit):
    browser = await visit("upload")
    record = next(r for r in await site.state.keys.records() if r.label == "upload")
    await site.state.keys.revoke(record.key_id)
    site.state.keys.invalidate()
    answer = await browser.get("/masks")
    assert answer.headers["location"] == "/console/sign-in?ended=1"
    assert "session has ended" in (await browser.get("/sign-in?ended=1")).text


async def test_a_session_has_a_bounded_life(site, visit, monkeypatch):
    signed_in = await visit("infer")
    # As a header: a client with a clock of its own drops a cookie that has ended.
    cookie = {"Cookie": f"bmt_console={signed_in.client.cookies['bmt_console']}"}
    browser, now = await visit(""), sessions.time.time()
    for apart, status in (
        (0, 200),
        (sessions.LIFETIME_S + 1, 303),
        # Of a value that says it lives longer, no more than one that has ended.
        (-3600, 303),
        # A server whose clock is behind the one that the visitor signed in at.
        (-10, 200),
    ):
        monkeypatch.setattr(sessions.time, "time", lambda apart=apart: now + apart)
        answer = await browser.get("/masks", headers=cookie)
        assert answer.status_code == status, apart


async def test_made_up_cookies_leave_connections_for_api_keys(site, visit):
    """They are looked up few at a time, so keys are looked up in between."""
    quick, running, most = site.state.key_connection.quick, 0, 0
    hget = quick.hget

    async def counted(*args):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await hget(*args)
        finally:
            running -= 1

    quick.hget = counted
    browser = await visit("")
    made_up = [{"Cookie": f"bmt_console=id~{n:043}"} for n in range(50)]
    answers = await asyncio.gather(*(browser.get("/masks", headers=one) for one in made_up))
    assert {answer.status_code for answer in answers} == {303}
    assert 1 <= most <= 2


async def test_a_key_has_a_bounded_number_of_sessions(site, visit):
    first = await visit("infer")
    for _ in range(sessions.MAX_OF_A_KEY):
        last = await visit("infer")
    assert (await first.get("/masks")).status_code == 303
    assert (await last.get("/masks")).status_code == 200
    quick = site.state.connection.quick
    (name,) = [key async for key in quick.scan_iter("{bmt}:sessions:*")]
    assert await quick.hlen(name) == sessions.MAX_OF_A_KEY
    assert 0 < await quick.ttl(name) <= sessions.LIFETIME_S


async def test_the_registry_has_neither_tokens_nor_keys(site, visit):
    browser = await visit("infer")
    quick = site.state.connection.quick
    (name,) = [key async for key in quick.scan_iter("{bmt}:sessions:*")]
    stored = str(await quick.hgetall(name))
    token = browser.client.cookies["bmt_console"].partition("~")[2]
    assert token
    assert token not in stored
    assert site.keys["infer"] not in stored


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cookies_are_out_of_reach_for_scripts_and_other_sites(site, visit, scheme):
    browser = await visit("", scheme)
    form = await browser.get("/sign-in")
    answer = await browser.sign_in(site.keys["admin"])
    made = [*form.headers.get_list("set-cookie"), *answer.headers.get_list("set-cookie")]
    assert len(made) == 3  # of the form, of the session, and the end of the form's
    for cookie in made:
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/console" in cookie
        assert ("Secure" in cookie) == (scheme == "https")
        assert "Max-Age=" in cookie
        assert site.keys["admin"] not in cookie


@pytest.mark.parametrize(
    "key",
    # Processes of a parallel run must agree on each test's name: a random key has one of its own.
    [
        "",
        "nonsense",
        "bmt_adm_" + "x" * 38,
        "x" * 300,
        pytest.param(make_key(("infer",)), id="new"),
    ],
)
async def test_a_key_that_is_not_known_is_refused_on_the_form(site, visit, key):
    browser = await visit("")
    answer = await browser.sign_in(key)
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "bmt_console" not in browser.client.cookies
    assert not key or key not in answer.text


FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
)
CHANGES = [path for method, path in ROUTES if method == "POST"]


@pytest.mark.parametrize("path", CHANGES)
async def test_forms_of_other_sites_and_sessions_change_nothing(site, visit, path):
    """Every form that there is, so the next one too."""
    browser, stranger = await visit("admin"), await visit("admin")
    token = await browser.token("/masks")
    foreign = await stranger.token("/masks")
    # Forms with a file are known by their pages; each accepts its own kind alone.
    kinds = [{"data": {"csrf": "%s"}}]
    if path in ("/console/masks", "/console/files"):
        kinds = [{"data": {"csrf": "%s"}, "files": {"file": ("m.bmt", b"x")}}]
    for kind in kinds:
        for wrong in ("", "x", "é", foreign):
            options = {**kind, "data": {"csrf": wrong, "name": "m", "alias": "prod"}}
            answer = await browser.client.post(path, **options)
            assert answer.status_code == 403, (path, wrong)
        for headers in FOREIGN:
            options = {**kind, "data": {"csrf": token, "name": "m", "alias": "prod"}}
            answer = await browser.client.post(path, headers=headers, **options)
            assert answer.status_code == 403, (path, headers)
    async with site.client() as client:
        assert (await client.get("/v1/masks")).json()["data"] == []


async def test_the_sign_in_form_is_not_anothers(site, visit):
    """No form that another site sends signs a visitor in as somebody else."""
    browser = await visit("")
    token = await browser.token("/sign-in")
    for headers in FOREIGN:
        data = {"csrf": token, "key": site.keys["infer"]}
        answer = await browser.client.post("/console/sign-in", data=data, headers=headers)
        assert answer.status_code == 403
    answer = await browser.send("/sign-in", csrf="0" * 64, key=site.keys["infer"])
    assert answer.status_code == 403


@pytest.mark.parametrize("site_of_page", ["same-site", "cross-site"])
async def test_scripts_of_other_origins_read_no_page(visit, site_of_page):
    """Those too that may read the API, on a host of the same site: its cookies go along."""
    browser = await visit("admin")
    for mode in ("cors", "no-cors"):
        headers = {"Sec-Fetch-Site": site_of_page, "Sec-Fetch-Mode": mode}
        for path in ("", "/masks", "/keys", "/sign-in"):
            answer = await browser.get(path, headers=headers)
            assert answer.status_code == 403
            assert 'name="csrf"' not in answer.text
    headers = {"Sec-Fetch-Site": site_of_page, "Sec-Fetch-Mode": "navigate"}
    assert (await browser.get("/masks", headers=headers)).status_code == 200


async def test_without_the_headers_of_https_the_origin_decides(visit):
    """Over plain HTTP browsers send no Sec-Fetch headers, and another port is the same site."""
    browser = await visit("admin")
    for path in ("/masks", "/keys", "/sign-in"):
        answer = await browser.get(path, headers={"Origin": "http://test:3000"})
        assert answer.status_code == 403
        assert 'name="csrf"' not in answer.text
    assert (await browser.get("/masks", headers={"Origin": "http://test"})).status_code == 200


async def test_odd_headers_before_the_sign_in_are_no_fault_of_the_server(visit):
    browser = await visit("")
    for headers in (
        {"Host": "["},
        {"Cookie": 'bmt_console_sign_in="' + r"\015\012" + 'x" '},
        {"Cookie": 'bmt_console_sign_in="' + r"\015" + "x" * 42 + '"'},
    ):
        answer = await browser.get("/sign-in", headers=headers)
        assert answer.status_code == 200, headers
        cookie = answer.headers["set-cookie"]
        assert re.match(r"bmt_console_sign_in=[\w-]{43};", cookie), cookie


async def test_the_form_before_a_session_is_short(visit):
    """Memory for whoever sends one."""
    browser = await visit("")
    answer = await browser.send("/sign-in", key="x" * 5000)
    assert answer.status_code == 413


async def test_a_request_of_a_client_is_not_taken_for_one_of_the_console(site, visit):
    """The session's key travels in the ASGI scope, which no header reaches."""
    browser = await visit("admin")
    for name in ("bmt.session_key", "bmt-session-key", "x-bmt-session-key"):
        answer = await browser.client.get("/v1/masks", headers={name: "0" * 64})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("changes", "flag"), [({"no_console": True}, "--no-console"), ({"no_auth": True}, "--no-auth")]
)
async def test_a_server_without_a_console_says_so_in_one_line(valkey, tmp_path, changes, flag):
    paths = [*ROUTES, ("GET", "/console/sign-in"), ("POST", "/console/sign-in")]
    paths.append(("GET", "/console/static/console.js"))
    async with (
        replica(valkey.url, tmp_path / "cache", {"": ""}, **changes) as api,
        api.client("") as client,
    ):
        for method, path in paths:
            answer = await client.request(method, path)
            assert answer.status_code == 404, (method, path)
            assert flag in answer.text


async def test_the_registry_is_away(site, visit, valkey):
    browser = await visit("admin")
    valkey.process.terminate()
    valkey.process.wait()
    try:
        answer = await browser.get("/masks")
        assert answer.status_code == 503
        assert "registry" in answer.text
        assert answer.headers["retry-after"]
    finally:
        valkey.start()


async def test_changes_are_audited_as_those_of_the_key(site, visit, caplog):
    browser = await visit("admin")
    with caplog.at_level("INFO"):
        await browser.upload("/masks", "m.bmt", bmt_core.encode(make_mask()), name="m")
    record = next(r for r in await site.state.keys.records() if r.label == "admin")
    assert any("audit publish" in line and record.key_id in line for line in caplog.messages)
