"""Authorization: every route with every kind of key, and attempts to bypass it."""

from __future__ import annotations

import hashlib
import json
import signal
import time

import pytest
from bmt_server.api.permissions import ROUTES, find_route
from bmt_server.errors import BadRequest
from bmt_server.registry.api_keys import SCOPES, make_key

PATHS = {
    "open": [(m, p) for m in ("GET", "HEAD") for p in ("/livez", "/readyz")],
    "any": [
        *[("GET", p) for p in ("/v1/models", "/v1/masks", "/v1/masks/m", "/v1/masks/m/versions")],
        ("GET", "/v1/blobs/" + "0" * 64),
        ("GET", "/v1/masks/m/aliases/prod"),
        *(("HEAD", p) for p in ("/v1/models", "/v1/masks", "/v1/models/tiny", "/v1/me")),
    ],
    "infer": [
        ("POST", "/v1/chat/completions"),
        *((m, "/v1/batches") for m in ("GET", "POST")),
        ("GET", "/v1/batches/x"),
        ("POST", "/v1/batches/x/cancel"),
    ],
    "upload": [
        ("PUT", "/v1/masks/m"),
        ("PATCH", "/v1/masks/m"),
        ("PUT", "/v1/masks/m/aliases/latest"),
        ("POST", "/v1/masks/m/import"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("DELETE", "/v1/models/rollout-m"),
        *((m, "/v1/files") for m in ("GET", "POST")),
        *((m, "/v1/files/file-0") for m in ("GET", "DELETE")),
        ("GET", "/v1/files/file-0/content"),
        *((m, "/v1/fine_tuning/jobs") for m in ("GET", "POST")),
        *(("GET", f"/v1/fine_tuning/jobs/x{end}") for end in ("", "/events", "/checkpoints")),
        *(("POST", f"/v1/fine_tuning/jobs/x/{w}") for w in ("cancel", "pause", "resume")),
    ],
    "train": [
        ("POST", "/v1/workers/lease"),
        ("POST", "/v1/workers/jobs/x/report"),
        ("POST", "/v1/workers/jobs/x/end"),
        ("GET", "/v1/workers/jobs/x/file"),
        ("PUT", "/v1/workers/jobs/x/mask"),
    ],
    "promote": [
        ("PUT", "/v1/masks/m/aliases/prod"),
        ("DELETE", "/v1/masks/m/aliases/prod"),
        *(("POST", f"/v1/masks/m/aliases/prod/{what}") for what in ("promote", "rollback")),
        ("DELETE", "/v1/models/m:prod"),
    ],
    "admin": [
        ("DELETE", "/v1/masks/m"),
        ("DELETE", "/v1/masks/m/versions/" + "0" * 12),
        ("PUT", "/v1/masks/m/pin"),
        ("DELETE", "/v1/models/m"),
        ("DELETE", "/v1/models/m@" + "0" * 12),
        ("DELETE", "/v1/models/a/b:c"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys/0"),
        ("DELETE", "/v1/keys/0"),
        ("POST", "/v1/keys/0/rotate"),
    ],
}


async def status(api, method, path, key=None, **headers):
    async with api.client("") as client:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        answer = await client.request(method, path, headers=headers, json={"model": "tiny"})
        return answer.status_code


async def test_every_route_needs_its_scope(api):
    for scope, routes in PATHS.items():
        for method, path in routes:
            route = find_route(method, path)
            assert route is not None
            assert route.scope == scope
            if scope == "open":
                assert await status(api, method, path) == 200
                continue
            for bad in (None, "", "nonsense", "bmt_adm_" + "x" * 38, make_key(("admin",))):
                assert await status(api, method, path, bad) == 401, (method, path, bad)
            for name in ("infer", "upload", "promote"):
                allowed = scope in ("any", name)
                found = await status(api, method, path, api.keys[name])
                assert (found not in (401, 403)) == allowed, (method, path, name, found)
            assert await status(api, method, path, api.keys["admin"]) not in (401, 403)


async def test_unlisted_routes_are_denied_even_to_admins(api):
    for path in ("/pause", "/collective_rpc", "/adapters", "/invocations"):
        assert await status(api, "POST", path) == 401
        assert await status(api, "POST", path, api.keys["admin"]) == 404
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert await status(api, "GET", path, api.keys["admin"]) == 404


@pytest.mark.parametrize(
    "path",
    ["http://test//v1/masks", "/V1/masks", "/v1/masks/", "/v1//masks", "/v1/masks;x"],
)
async def test_other_spellings_of_a_path_do_not_bypass_authentication(api, path):
    assert await status(api, "GET", path) == 401
    # Slashes of joined URLs are answered.
    found = 404 if path in ("/V1/masks", "/v1/masks;x") else 200
    assert await status(api, "GET", path, api.keys["admin"]) == found


def test_dot_segments_are_not_resolved():
    """Paths as routing sees them; clients resolve dots before they send a request."""
    assert find_route("GET", "/livez/../v1/masks") is None
    assert find_route("GET", "/livez/%2e%2e/v1/masks") is None


async def test_headers_do_not_bypass_authentication(api):
    assert await status(api, "GET", "/v1/masks", Host="livez/?x=") == 401
    assert await status(api, "GET", "/v1/masks?api_key=" + api.keys["admin"]) == 401
    assert await status(api, "GET", "/v1/masks", "x" * 100_000) == 401
    async with api.client("") as client:
        two = [("Authorization", "Bearer " + api.keys["admin"])] * 2
        assert (await client.get("/v1/masks", headers=two)).status_code == 401
        seen = await client.get("/v1/masks", headers={"X-Request-Id": "a\tb"})
        assert seen.headers["x-request-id"].startswith("req-")
        seen = await client.get("/v1/masks", headers={"X-Request-Id": "mine-1"})
        assert seen.headers["x-request-id"] == "mine-1"
        assert seen.json()["error"]["request_id"] == "mine-1"


async def test_websockets_are_closed(api):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "app": api.app}
    await api.app(scope, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_every_route_of_the_table_has_a_scope():
    scopes = {"open", "session", "any", "metrics", "infer", "train", "upload", "promote", "admin"}
    assert {r.scope for r in ROUTES} == scopes
    assert [r.path.pattern for r in ROUTES if r.scope == "open"] == [
        "/(livez|readyz)",
        "/health|/ping",
    ]


async def test_an_operators_key_is_imported_once(api):
    keys = api.state.keys
    secret = make_key(("admin",))
    assert await status(api, "GET", "/v1/masks", secret) == 401
    assert await keys.import_key(secret, label="BMT_ADMIN_KEY")
    assert not await keys.import_key(secret)  # every server imports it at its start
    keys.invalidate()
    assert await status(api, "GET", "/v1/masks", secret) == 200
    (record,) = [r for r in await keys.records() if r.label == "BMT_ADMIN_KEY"]
    assert set(record.scopes) == set(SCOPES)
    for wrong in ("", "secret", secret[:-1] + ("0" if secret[-1] != "0" else "1")):
        with pytest.raises(BadRequest, match="keys generate"):
            await keys.import_key(wrong)


async def test_known_keys_are_refreshed_in_the_background(api, valkey):
    """A request with a known key does not wait for the registry; a revoked one still ends."""
    keys = api.state.keys
    made = await keys.create(("infer",))
    assert await status(api, "GET", "/v1/masks", made[0]) == 200
    # Revoked without an event that reaches this server.
    await api.state.connection.quick.hdel(
        "{bmt}:keys", hashlib.sha256(made[0].encode()).hexdigest()
    )
    assert await status(api, "GET", "/v1/masks", made[0]) == 200
    await keys.refresh()
    assert await status(api, "GET", "/v1/masks", made[0]) == 401
    assert await status(api, "GET", "/v1/masks", api.keys["infer"]) == 200
    assert keys._polling is not None
    assert not keys._polling.done()
    # After a change each key is looked up at its next use; if that fails, it stays known.
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        keys.invalidate()
        assert await status(api, "GET", "/v1/masks", api.keys["infer"]) == 200
        start = time.monotonic()
        for _ in range(20):
            assert await status(api, "GET", "/v1/masks", api.keys["infer"]) == 200
        # Each would wait for half a second.
        assert time.monotonic() - start < 5
    finally:
        valkey.process.send_signal(signal.SIGCONT)


async def rewrite(api, record, **fields):
    """Change a key's record in the registry, as an earlier build or time would have it."""
    quick = api.state.connection.quick
    for digest, value in (await quick.hgetall("{bmt}:keys")).items():
        if (raw := json.loads(value))["key_id"] == record.key_id:
            await quick.hset("{bmt}:keys", digest, json.dumps({**raw, **fields}))
    api.state.keys.invalidate()


@pytest.mark.found
@pytest.mark.parametrize("expires", ["30d", "tomorrow", "2999-01-01T00:00:00"])
async def test_a_stored_expiry_that_is_no_time_has_expired(api, expires):
    made = await api.state.keys.create(("infer",))
    await rewrite(api, made[1], expires=expires)
    assert await status(api, "GET", "/v1/masks", made[0]) == 401


@pytest.mark.found
async def test_a_stored_tenant_that_is_no_name_reads_nothing(api):
    made = await api.state.keys.create(("admin",), tenant="acme")
    assert await status(api, "GET", "/v1/masks", made[0]) == 200
    await rewrite(api, made[1], tenant="acme/sub")
    assert await status(api, "GET", "/v1/masks", made[0]) == 401


async def test_revoked_and_expired_keys(api):
    keys = api.state.keys
    made = await keys.create(("infer",), expires="1h")
    assert await status(api, "GET", "/v1/masks", made[0]) == 200
    await rewrite(api, made[1], expires="2020-01-01T00:00:00+00:00")
    assert await status(api, "GET", "/v1/masks", made[0]) == 401
    made = await keys.create(("infer",))
    assert await status(api, "GET", "/v1/masks", made[0]) == 200
    await keys.revoke(made[1].key_id)
    keys.invalidate()
    assert await status(api, "GET", "/v1/masks", made[0]) == 401
    assert await keys.create(("admin",), only_if_first=True) is None
    raw = await api.state.connection.quick.hgetall("{bmt}:keys")
    assert not any(
        k[8:40].encode() in b"".join([*raw, *raw.values()]) for k in api.keys.values() if k
    )
