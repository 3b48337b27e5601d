"""Every route of vLLM's that clients reach: keys, tenants, limits, isolation and metrics."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
from bmt_server.api.admission import KeyLimiter, SequenceLimiter
from bmt_server.api.isolation import salt_of
from bmt_server.api.permissions import ROUTES, find_route
from bmt_server.api.request_limits import PINNED_FIELDS
from bmt_server.api.shutdown import Shutdown
from vllm.entrypoints.generate.base.serving import PRIORITY_HEADER, SESSION_ID_HEADER

from tests.support.replica import make_mask
from tests.support.requests.vllm_app import REACHED_ROUTES, build_vllm_app

# Decisions about vLLM's routes; a further one fails the test below until it is in one of the two.
CLOSED = {
    # They pause, scale or replace the engine, its weights or its adapters.
    *("/abort_requests", "/adapters", "/adapters/x", "/collective_rpc", "/finish_weight_update"),
    *("/init_weight_transfer_engine", "/is_scaling_elastic_ep", "/pause", "/resume", "/sleep"),
    *("/release_kv_cache_memory", "/reset_encoder_cache", "/reset_mm_cache", "/wake_up"),
    *("/reset_prefix_cache", "/scale_elastic_ep", "/shutdown_weight_transfer_engine"),
    *("/start_draft_weight_update", "/start_weight_update", "/update_weight_version"),
    *("/update_weights", "/weight_checker"),
    "/inference/v1/abort_requests",
    # They show the engine's inside, or the app's description.
    *("/docs", "/docs/oauth2-redirect", "/get_world_size", "/is_paused", "/is_sleeping", "/load"),
    *("/kv_event_sources", "/openapi.json", "/redoc", "/server_info", "/weight_info"),
    # Other forms of requests, for which no limits are known yet.
    *("/classify", "/generative_scoring", "/inference/v1/generate", "/invocations", "/pooling"),
    *("/rerank", "/score", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime"),
    *("/v1/chat/completions/batch", "/v1/chat/completions/derender", "/v1/rerank", "/v1/score"),
    *("/v1/chat/completions/render", "/v1/completions/derender", "/v1/completions/render"),
    *("/v1/messages/render", "/v1/responses/render", "/v1/systemone", "/v2/embed", "/v2/rerank"),
    # Stored responses, of which there are none.
    *("/v1/responses/x", "/v1/responses/x/cancel"),
}
OURS = (
    r"/v1/(masks|blobs|keys|limits|files|batches|fine_tuning|workers)(/.*)?|/(livez|readyz)|/v1/(me|usage|models/x)"
    r"|/v1/(load|unload)_lora_adapter|/console(/.*)?"
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODIES = {
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
}
ENGINE = [p for p in BODIES if find_route("POST", p).runs_engine]


@pytest.fixture(scope="module")
def app():
    return build_vllm_app()


def test_every_route_of_vllm_is_decided(app):
    paths = {re.sub(r"\{[^}]*\}", "x", p) for r in app.routes if (p := getattr(r, "path", None))}
    vllms = {path for path in paths if not re.fullmatch(OURS, path)}
    assert vllms == REACHED_ROUTES | CLOSED
    reached = {p for p in vllms if any(find_route(m, p) for m in METHODS)}
    assert reached == REACHED_ROUTES


def test_vllms_routes_of_adapters_are_replaced_by_ours(app):
    """The app has vLLM's, which read paths on the server, if its switch is set as here."""
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        (route,) = [r for r in app.routes if getattr(r, "path", "") == path]
        assert route.endpoint.__module__ == "bmt_server.api.publishing.adapter_routes"


def test_every_route_with_a_model_has_a_schema(models):
    """Without one, vLLM's own validation would be the first to look at a body."""
    assert set(models) == set(BODIES)
    assert sum(route.names_model for route in ROUTES) == 3


async def post(client, path, **more):
    return await client.post(path, json={"model": "tiny", **BODIES[path], **more})


@pytest.mark.parametrize("path", BODIES)
async def test_keys_and_tenants(api, calls, path):
    await api.put("mine", make_mask())
    for key, status in (("", 401), ("upload", 403), ("infer", 200), ("admin", 200)):
        async with api.client(key) as client:
            assert (await post(client, path)).status_code == status, key
    async with api.client("infer") as client:
        assert (await post(client, path, model="mine")).status_code == 200
    async with api.client("other") as client:
        foreign = await post(client, path, model="mine")
        unknown = await post(client, path, model="none")
    assert (foreign.status_code, unknown.status_code) == (404, 404)
    assert foreign.json()["error"]["code"] == unknown.json()["error"]["code"]


@pytest.mark.found
@pytest.mark.parametrize("path", BODIES)
async def test_whatever_runs_for_a_request_has_its_tenants_salt(api, calls, path):
    async with api.client("infer") as client:
        await post(client, path)
    async with api.client("other") as client:
        await post(client, path)
    assert [call.salt for call in calls] == [None, salt_of("other")]
    for call in calls:
        for field in PINNED_FIELDS.keys() & type(call.request).model_fields.keys():
            assert getattr(call.request, field) is PINNED_FIELDS[field]


@pytest.mark.found
@pytest.mark.parametrize("path", BODIES)
async def test_limits_of_the_key_and_of_shutdown(api, calls, path):
    async with api.client("infer") as client:
        api.replace(key_limiter=KeyLimiter(0, 0.01))
        first, second = await post(client, path), await post(client, path)
        assert (first.status_code, second.status_code) == (200, 429)
        assert second.json()["error"]["code"] == "too_often"
        api.replace(key_limiter=KeyLimiter(0, 0), shutdown=Shutdown(60, lambda: None))
        api.state.shutdown.started = True
        stopping = await post(client, path)
        assert (stopping.status_code, stopping.json()["error"]["code"]) == (503, "stopping")


@pytest.mark.parametrize("path", ENGINE)
async def test_places_of_the_engine(api, calls, path):
    api.replace(sequence_limiter=SequenceLimiter(2))
    async with api.client("infer") as client:
        with api.state.sequence_limiter.admit(2):
            full = await post(client, path)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        assert (await post(client, path)).status_code == 200
        for field in {"prompt", "input"} & BODIES[path].keys() - {"messages"}:
            if path == "/v1/responses":
                continue
            more = await post(client, path, **{field: ["x"] * 3})
            assert (more.status_code, more.json()["error"]["code"]) == (400, "too_many_sequences")


@pytest.mark.parametrize("path", BODIES)
async def test_requests_and_refusals_are_counted(api, calls, path):
    def counted(**labels):
        return api.state.metrics.http_requests.labels(**labels)._value.get()

    async with api.client("infer") as client:
        assert (await post(client, path)).status_code == 200
        assert (await post(client, path, model="none")).status_code == 404
    assert counted(route=path, outcome="ok") == 1
    assert counted(route=path, outcome="client_error") == 1


@pytest.mark.found
@pytest.mark.parametrize("path", BODIES)
async def test_all_errors_have_one_shape(api, calls, path, caplog):
    """Those of the gate, of vLLM's handlers in each of their forms, and of a fault in a handler."""
    forms = (
        {"error": {"message": "m", "type": "BadRequestError", "param": "stop", "code": 400}},
        {"type": "error", "error": {"type": "BadRequestError", "message": "m"}},
        {"detail": "m"},
        "m",
    )
    async with api.client("infer") as client:
        answers = [await client.post(path, content=b"{", headers={"content-type": "a/json"})]
        answers += [await post(client, path, model=5), await post(client, path, model="none")]
        for status in (400, 404, 422, 500, 501, 503):
            for form in forms:
                calls.answer = status, form
                answers.append(await post(client, path))
                assert answers[-1].status_code == status
        calls.answer = 500, RuntimeError("/srv/secret")
        answers.append(await post(client, path))
    for answer in answers:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param", "request_id"}
        assert isinstance(error["code"], str)
        assert error["message"]
        assert "secret" not in answer.text
        assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
        if answer.status_code == 500:
            assert error["request_id"] in caplog.text
    assert api.state.metrics.errors.labels("internal")._value.get() == 5


@pytest.mark.found
@pytest.mark.parametrize(
    "more",
    [
        {"background": True, "store": True, "max_output_tokens": 300},
        {"background": True},
        {"store": True},
        {"previous_response_id": "resp_a9b6"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
    ],
    ids=lambda more: ",".join(more),
)
async def test_stored_responses_are_refused_by_name(api, calls, more, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    async with api.client("infer") as client:
        refused = await post(client, "/v1/responses", **more)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "field_refused")
        assert refused.json()["error"]["param"] in more
        unset = dict.fromkeys(more, None) | {"store": False, "background": False}
        assert (await post(client, "/v1/responses", **unset)).status_code == 200
    assert calls[-1].request.store is False


async def test_a_disconnect_ends_the_reading_of_a_body(api, calls):
    """The place of the key is free again."""
    api.replace(key_limiter=KeyLimiter(1, 0))
    started = asyncio.Event()

    async def parts():
        yield b'{"model": "tiny", '
        started.set()
        await asyncio.sleep(60)

    async with api.client("infer") as client:
        headers = {"content-type": "application/json"}
        slow = asyncio.create_task(client.post("/v1/completions", content=parts(), headers=headers))
        await started.wait()
        assert (await post(client, "/v1/completions")).status_code == 429
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert (await post(client, "/v1/completions")).status_code == 200


@pytest.mark.found
@pytest.mark.parametrize("path", BODIES)
async def test_the_base_answers_for_no_model_only_if_the_operator_says_so(api, calls, path):
    async with api.client("infer") as client:
        for body in (BODIES[path], {**BODIES[path], "model": None}):
            refused = await client.post(path, json=body)
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["param"] == "model"
            api.replace(settings=replace(api.state.settings, base_by_default=True))
            # Anthropic's schema requires a model, which an operator cannot change.
            answer = await client.post(path, json=body)
            api.replace(settings=replace(api.state.settings, base_by_default=False))
            if "messages" in path:
                assert answer.status_code == 400
            else:
                assert (answer.status_code, answer.json()["model"]) == (200, "tiny")


@pytest.mark.found
@pytest.mark.parametrize("text", [rb'"\udc00"', rb'"a\ud83d"', b"NaN", b"-Infinity", b"1e999"])
@pytest.mark.parametrize("path", BODIES)
async def test_what_no_text_can_hold_is_the_clients_fault(api, calls, path, text):
    data = json.dumps({"model": "tiny", **BODIES[path], "stop": ["?"]}).encode()
    async with api.client("infer") as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(path, content=data.replace(b'"?"', text), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_json")
    assert calls == []


async def test_no_answer_names_a_folder_or_an_address(api, calls, valkey):
    """Neither the list of models, nor an error that vLLM words."""
    await api.put("m", make_mask())
    secrets = (api.state.settings.cache_dir, valkey.url, valkey.socket_dir)
    message = f"cannot read {secrets[0]}/x.bin"
    calls.answer = 400, {"error": {"message": message, "code": 400}}
    async with api.client("infer") as client:
        answers = [await client.get(p) for p in ("/v1/models", "/v1/models/tiny", "/v1/models/m")]
        answers.append(await post(client, "/v1/completions"))
    assert answers[1].json()["root"] == "tiny"
    for answer in answers:
        assert not any(secret in answer.text for secret in secrets), answer.text


@pytest.mark.found
@pytest.mark.parametrize("path", BODIES)
async def test_the_app_sees_no_header_that_steers_the_engine(api, calls, path):
    """vLLM reads a priority, a rank, a session and more from headers, also where the body says."""
    steering = {PRIORITY_HEADER, SESSION_ID_HEADER, "x-data-parallel-rank", "x-anything"}
    steering.add("endpoint-load-metrics-format")
    async with api.client("infer") as client:
        body = {"model": "tiny", **BODIES[path]}
        answer = await client.post(path, json=body, headers=dict.fromkeys(steering, "-5"))
    assert answer.status_code == 200
    assert calls[-1].headers >= {"content-type", "content-length"}
    assert not calls[-1].headers & {name.lower() for name in steering | {"authorization"}}
