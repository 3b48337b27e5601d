"""Copies for a shadow: sent after the answer, bounded, dropped, counted, charged to none."""

from __future__ import annotations

import asyncio
import json

import pytest
from bmt_server.api.admission import SequenceLimiter
from bmt_server.api.canary.shadows import Shadows
from bmt_server.api.isolation import current_salt, salt_of
from bmt_server.api.usage.caller import current_caller
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse

from tests.support.replica import make_mask

MAIN, SHADOW, CANARY = make_mask(1), make_mask(2), make_mask(3)
PATH = "/v1/masks/m/aliases/prod"


class App:
    """Completions that say what they are asked for; a copy may wait, or fail in some way."""

    def __init__(self, api):
        self.asked = []
        self.fail = self.wait = None
        self.leaves = False
        self.state = api.state

        @api.app.post("/v1/completions")
        async def answer(request: Request):
            body = await request.json()
            caller = current_caller()
            self.asked.append((body, dict(request.headers), current_salt(), caller))
            if self.leaves:
                return await self.until_left(request, body)
            if SHADOW.digest[:12] in body["model"]:
                if self.wait is not None:
                    await self.wait.wait()
                if self.fail == "raise":
                    raise RuntimeError("broken")
                if self.fail == "event":
                    event = b'data: {"error": {"message": "x", "code": 500}}\n\n'
                    return StreamingResponse(iter([event]), media_type="text/event-stream")
                if self.fail is not None:
                    return JSONResponse({"error": {"message": "x"}}, self.fail)
            figures = {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 7}
            self.state.meter.request_finished(
                body["model"], caller=caller, outcome="ok", ttft_s=0.1, **figures
            )
            return {"model": body["model"]}

    async def until_left(self, request, body):
        """As vLLM answers a client that leaves: no error, and `null` without a stream."""
        if not body.get("stream"):
            while (await request.receive())["type"] != "http.disconnect":
                pass
            return None

        async def events():
            yield b'data: {"choices": []}\n\n'
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    def of(self, mask):
        return [one for one in self.asked if mask.digest[:12] in one[0]["model"]]


@pytest.fixture
async def app(api):
    """`m:prod` is MAIN, all of whose requests SHADOW gets too."""
    await api.put("m", MAIN, params={"alias": "prod"})
    await api.put("m", SHADOW)
    await api.put("m", CANARY)
    await split(api)
    return App(api)


async def split(api, percent=100, key="admin", **more):
    async with api.client(key) as client:
        shadow = {"digest": SHADOW.digest, "percent": percent}
        body = {"digest": MAIN.digest, "shadow": shadow, **more}
        answer = await client.put(PATH, json=body)
        assert answer.status_code == 200, answer.text


async def ask(api, key="infer", model="m:prod", **body):
    async with api.client(key) as client:
        return await client.post("/v1/completions", json={"model": model, "prompt": "x", **body})


async def leave(api, body, key="infer"):
    """A request whose client leaves; httpx's transport cannot, it cancels the app."""
    text = json.dumps(body).encode()
    incoming = [{"type": "http.request", "body": text, "more_body": False}]

    async def receive():
        if incoming:
            return incoming.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = {"authorization": f"Bearer {api.keys[key]}", "content-type": "application/json"}
    path = "/v1/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "app": api.app}
    await asyncio.wait_for(api.app(scope, receive, send), 5)


async def settled(api):
    for _ in range(300):
        if not api.state.shadows._tasks:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("copies run on")


def counted(api, role, outcome, version=None, name="m:prod"):
    digest = {"main": MAIN, "shadow": SHADOW, "canary": CANARY}[role].digest[:12]
    prefix = name.rpartition(":")[0]
    labels = (name, version or f"{prefix}@{digest}", role, outcome)
    return api.state.versions.requests.labels(*labels)._value.get()


async def test_a_copy_is_the_same_request_to_the_other_version(api, app):
    answer = await ask(api, temperature=0.5, n=2, priority=3)
    assert MAIN.digest[:12] in answer.json()["model"]
    await settled(api)
    (main, headers, *_), (copy, copied, *_) = app.asked
    assert copy == {**main, "model": f"m@{SHADOW.digest[:12]}"}
    assert copied["x-request-id"] != headers.get("x-request-id")
    assert counted(api, "main", "ok") == counted(api, "shadow", "ok") == 1


async def test_a_copy_does_not_overtake(api, app):
    assert (await ask(api, "admin", priority=-5)).status_code == 200
    await settled(api)
    assert [body["priority"] for body, *_ in app.asked] == [-5, 0]


async def test_no_answer_waits_for_a_copy(api, app):
    app.wait = asyncio.Event()
    for _ in range(3):
        assert (await asyncio.wait_for(ask(api), 5)).status_code == 200
    assert len(app.of(SHADOW)) <= 3
    app.wait.set()
    await settled(api)
    assert len(app.of(SHADOW)) == 3


async def test_a_copy_that_fails_is_counted_and_nothing_else(api, app):
    for count, fail in enumerate(("raise", 500, "event"), 1):
        app.fail = fail
        assert (await ask(api)).status_code == 200
        await settled(api)
        assert counted(api, "shadow", "server_error") == count
    app.fail = 400
    assert (await ask(api)).status_code == 200
    await settled(api)
    assert counted(api, "shadow", "client_error") == 1
    assert counted(api, "main", "ok") == 4


async def test_a_shadow_that_cannot_be_loaded_fails_alone(api, app):
    version = api.state.replica.get("default", "m").versions[SHADOW.digest]
    await api.state.connection.quick.delete(f"{{bmt}}:blob:{version.file_digest}")
    for file in api.engine.folder.glob(f"*{SHADOW.digest}*"):
        file.unlink()
    assert (await ask(api)).status_code == 200
    await settled(api)
    assert counted(api, "shadow", "ok") == 0
    assert counted(api, "shadow", "server_error") + counted(api, "shadow", "client_error") == 1


async def test_copies_beyond_the_bound_are_dropped_and_counted(api, app):
    app.wait = asyncio.Event()
    shadows = Shadows(
        4, api.state.resolver, api.state.versions, api.state.turns, api.state.shadows._busy
    )
    api.replace(shadows=shadows)
    for sequences in (3, 2, 1, 1):  # the second and the fourth find no room
        assert (await ask(api, n=sequences)).status_code == 200
    assert counted(api, "shadow", "dropped") == 2
    app.wait.set()
    await settled(api)
    assert [body.get("n", 1) for body, *_ in app.of(SHADOW)] == [3, 1]
    assert (await ask(api, n=4)).status_code == 200
    await settled(api)
    assert counted(api, "shadow", "dropped") == 2
    assert counted(api, "shadow", "ok") == 3


async def test_no_copy_begins_on_a_busy_server_or_without_room(api, app):
    limiter = SequenceLimiter(8)
    api.replace(sequence_limiter=limiter)
    for most, busy in ((8, limiter.half_full), (0, lambda: False)):
        shadows = Shadows(most, api.state.resolver, api.state.versions, api.state.turns, busy)
        api.replace(shadows=shadows)
        before = counted(api, "shadow", "dropped")
        with limiter.admit(4):
            assert (await ask(api)).status_code == 200
        assert counted(api, "shadow", "dropped") == before + 1
    assert app.of(SHADOW) == []


async def test_only_answers_of_the_alias_that_succeed_have_copies(api, app):
    for model in ("m", f"m@{MAIN.digest[:12]}", "tiny"):
        assert (await ask(api, model=model)).status_code == 200
    assert (await ask(api, n=10**6)).status_code == 400
    async with api.client("infer") as client:
        await client.post("/tokenize", json={"model": "m:prod", "prompt": "x"})
    await settled(api)
    assert app.of(SHADOW) == []
    assert counted(api, "shadow", "dropped") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_its_client_leaves_has_no_copy(api, app, stream):
    """It was counted as a success, with the time until the client left."""
    app.leaves = True
    await leave(api, {"model": "m:prod", "prompt": "x", "stream": stream})
    await settled(api)
    assert (counted(api, "main", "cancelled"), counted(api, "main", "ok")) == (1, 0)
    assert len(app.asked) == 1
    assert counted(api, "shadow", "dropped") == 0


async def test_a_share_of_requests_has_copies(api, app):
    await split(api, 25)
    for _ in range(120):
        await ask(api)
        await settled(api)
    assert 10 <= len(app.of(SHADOW)) <= 52  # 30, and 4.6 standard deviations


async def test_the_shadow_itself_has_no_copy(api, app):
    """A canary that is the shadow too is not asked twice."""
    await split(api, canary={"digest": SHADOW.digest, "percent": 100})
    assert SHADOW.digest[:12] in (await ask(api)).json()["model"]
    await settled(api)
    assert len(app.asked) == 1


async def test_a_copy_is_charged_to_none_and_counted_by_its_version(api, app):
    await ask(api)
    await settled(api)
    usage = api.state.usage
    mask = api.state.metrics.tokens.labels("m", "completion")._value.get()
    assert mask == 7
    tokens = api.state.versions.tokens
    for role, digest in (("main", MAIN.digest), ("shadow", SHADOW.digest)):
        labels = ("m:prod", f"m@{digest[:12]}", role)
        assert tokens.labels(*labels, "completion")._value.get() == 7
        assert tokens.labels(*labels, "prompt")._value.get() == 5
    await usage.flush()
    async with api.client() as client:
        answer = (await client.get("/v1/usage")).json()
    assert json.dumps(answer).count('"completion_tokens": 7') >= 1
    assert '"completion_tokens": 14' not in json.dumps(answer)
    assert '"requests": 2' not in json.dumps(answer)


async def test_a_copy_stays_within_its_tenant(api, app):
    await api.put("m", MAIN, "other", params={"alias": "prod"})
    await api.put("m", SHADOW, "other")
    await split(api, key="other")
    await ask(api, "other")
    await settled(api)
    (_, _, salt, _), (body, _, copied, caller) = app.asked
    assert salt == copied == salt_of("other")
    assert (body["model"], caller.tenant) == (f"other/m@{SHADOW.digest[:12]}", "other")
    assert counted(api, "shadow", "ok", name="other/m:prod") == 1
    assert counted(api, "shadow", "ok") == 0


async def test_copies_end_with_the_server(api, app):
    app.wait = asyncio.Event()
    await ask(api)
    await asyncio.wait_for(api.state.shadows.close(), 5)
    await settled(api)
    assert api.state.lifecycle.in_use() == set()
