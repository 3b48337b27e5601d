"""Limits on requests: fields, admission, and graceful shutdown."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from bmt_server.api.admission import KeyLimiter, SequenceLimiter
from bmt_server.api.request_limits import (
    MAX_ENTRIES,
    MAX_GRAMMAR_CHARACTERS,
    MAX_PROMPTS,
    MAX_VALUES,
    REFUSED_FIELDS,
    check_body,
    count_sequences,
)
from bmt_server.api.shutdown import Shutdown
from bmt_server.errors import BadRequest, RateLimited, Unavailable

from tests.support.replica import make_mask

USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_refused_fields_are_named(field):
    with pytest.raises(BadRequest, match=field) as caught:
        check_body({"messages": [USER], field: {"a": 1} if "kwargs" in field else True})
    assert (caught.value.code, caught.value.param) == ("field_refused", field)
    check_body({"messages": [USER], field: None})  # clients send unset fields as null


@pytest.mark.parametrize("field", MAX_VALUES)
@pytest.mark.parametrize("write", [int, float, str])
def test_numbers_are_bounded_in_every_notation(field, write):
    """vLLM reads 65.0 and "65" as 65, and -1 as no limit."""
    check_body({field: write(MAX_VALUES[field])})
    for value in (MAX_VALUES[field] + 1, -1, 10**300):
        with pytest.raises(BadRequest, match=f"`{field}` is .*0 to {MAX_VALUES[field]}") as caught:
            check_body({field: write(value)})
        assert caught.value.code == "field_out_of_bounds"


@pytest.mark.found
@pytest.mark.parametrize("field", MAX_ENTRIES)
def test_lists_are_bounded(field):
    make = (lambda n: {str(i): 1 for i in range(n)}) if field == "logit_bias" else list
    entries = MAX_ENTRIES[field]
    check_body({field: make(entries) if field == "logit_bias" else [1] * entries})
    with pytest.raises(BadRequest, match=f"`{field}` is {entries + 1} entries"):
        check_body({field: make(entries + 1) if field == "logit_bias" else [1] * (entries + 1)})


def test_prompts_are_counted_and_token_ids_are_one():
    check_body({"prompt": [5] * 1000})
    check_body({"prompt": ["a"] * MAX_PROMPTS})
    for prompt in (["a"] * (MAX_PROMPTS + 1), [[5]] * (MAX_PROMPTS + 1)):
        with pytest.raises(BadRequest, match="prompts"):
            check_body({"prompt": prompt})
    with pytest.raises(BadRequest, match="characters"):
        check_body({"stop": "x" * 2000})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"image_url": "http://127.0.0.1/"},
        {"type": "tool_result", "content": [{"type": "image", "source": {"data": ""}}]},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    ],
)
def test_media_are_refused_at_any_depth(part):
    for body in ({"messages": [{"role": "user", "content": [part]}]}, {"input": [part]}):
        with pytest.raises(BadRequest, match="text only"):
            check_body(body)


def nested(field, value):
    """Places where vLLM or a template would find a field besides the top of a body."""
    user = {"role": "user", "content": [{"type": "text", "text": "x", field: value}]}
    yield {"messages": [{**USER, field: value}]}
    yield {"messages": [user]}
    yield {"messages": [USER], "chat_template_kwargs": {field: value}}
    yield {"messages": [USER], "vllm_xargs": {field: value}}
    yield {"messages": [USER], "extra_body": {field: value}}
    yield {"input": [{"role": "user", "content": [{"type": "input_text", field: value}]}]}
    yield {"messages": [USER], "tools": [{"type": "function", "function": {field: value}}]}


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_what_is_refused_is_refused_at_every_depth(field):
    for body in nested(field, {"a": 1}):
        with pytest.raises(BadRequest, match=field) as caught:
            check_body(body)
        assert caught.value.code == "field_refused"
    for body in nested(field, None):
        check_body(body)


@pytest.mark.parametrize("field", [*REFUSED_FIELDS, "image_url"])
def test_users_name_what_they_describe_as_they_like(field):
    schema = {"type": "object", "properties": {field: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    check_body({"messages": [USER], "tools": [tool]})
    check_body({"messages": [USER], "tools": [{"name": "f", "input_schema": schema}]})
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    check_body({"messages": [USER], "response_format": form})
    check_body({"messages": [USER], "structured_outputs": {"json": schema}})
    use = {"type": "tool_use", "name": "f", "input": {field: {"a": 1}}}
    check_body({"messages": [{"role": "assistant", "content": [use]}]})


@pytest.mark.found
def test_a_body_is_no_tools_call_whatever_its_type_says():
    image = {"type": "input_image", "image_url": "http://127.0.0.1/"}
    body = {"type": "tool_use", "input": [{"role": "user", "content": [image]}]}
    with pytest.raises(BadRequest):
        check_body(body)


@pytest.mark.found
def test_no_one_steps_ahead_of_others():
    check_body({"messages": [USER], "priority": 5})
    for priority in (-1, -(10**9), "-1", -0.5):
        with pytest.raises(BadRequest, match="scope `priority`"):
            check_body({"messages": [USER], "priority": priority})


def test_a_key_of_scope_priority_may_step_ahead():
    for priority in (-1, -(2**31), 2**31 - 1):
        check_body({"messages": [USER], "priority": priority}, may_step_ahead=True)
    for priority in (-(2**31) - 1, 2**31):
        with pytest.raises(BadRequest, match="priority"):
            check_body({"messages": [USER], "priority": priority}, may_step_ahead=True)


@pytest.mark.parametrize("kind", ["allowed_tools", "file_search", "mcp", "web_search_preview"])
def test_tool_choices_that_vllm_does_not_enforce_are_refused(kind):
    choice = {"type": kind, "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    with pytest.raises(BadRequest, match=kind):
        check_body({"input": "x", "tool_choice": choice})
    for enforced in ("required", {"type": "function", "name": "f"}, {"type": "any"}):
        check_body({"input": "x", "tool_choice": enforced})


@pytest.mark.parametrize(
    "ignored",
    [
        {"structured_outputs": {"choice": ["a"]}},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
        {"allowed_token_ids": [5]},
        {"bad_words": ["x"]},
        {"logit_bias": {"5": 1}},
        {"min_tokens": 2},
        {"stop": ["x"]},
    ],
    ids=lambda ignored: next(iter(ignored)),
)
def test_fields_without_effect_on_beams_are_refused(ignored):
    (field,) = ignored
    for beams in (True, "yes", 1):
        with pytest.raises(BadRequest, match=f"`{field}` has no effect"):
            check_body({"messages": [USER], "use_beam_search": beams, **ignored})
    check_body({"messages": [USER], "use_beam_search": False, **ignored})
    nothing = {"stop": [], "min_tokens": 0, "tool_choice": "auto", "response_format": None}
    check_body({"messages": [USER], "use_beam_search": True, **nothing})


def test_grammars_are_bounded():
    for field, most in MAX_GRAMMAR_CHARACTERS.items():
        check_body({"structured_outputs": {field: "a" * most}})
        with pytest.raises(BadRequest, match=f"`{field}` is {most + 1} characters"):
            check_body({"structured_outputs": {field: "a" * (most + 1)}})
    with pytest.raises(BadRequest, match="`choice` is 1025 entries"):
        check_body({"structured_outputs": {"choice": ["a"] * 1025}})


@pytest.mark.parametrize("field", ["stop", "prompt", "input", "messages", "n", "priority"])
@pytest.mark.parametrize("value", [5, 0.5, True, {}, [], "", [{}], [[]], {"a": []}, 10**400])
def test_no_type_of_a_field_breaks_the_check(field, value):
    """Types are vLLM's to refuse; the check itself never fails."""
    with suppress(BadRequest):
        check_body({field: value})
        assert count_sequences({field: value}) >= 1


def test_text_about_images_is_text():
    check_body({"messages": [{"role": "user", "content": [{"type": "text", "text": "image_url"}]}]})
    tool = {"type": "function", "function": {"name": "image", "parameters": {}}}
    check_body({"messages": [USER], "tools": [tool]})
    use = {"type": "tool_use", "name": "open", "input": {"type": "file", "path": "a"}}
    check_body({"messages": [{"role": "assistant", "content": [use]}]})


def test_concurrency_is_limited_per_key():
    limiter = KeyLimiter(2, 0)
    with limiter.admit("a"), limiter.admit("a"), limiter.admit("b"):
        with pytest.raises(RateLimited, match="2 requests running") as caught, limiter.admit("a"):
            pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
    with limiter.admit("a"):
        pass
    assert limiter._running == {}


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"prompt": "x"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["x", "y"], "n": 3}, 6),
        ({"prompt": [[1], [2], [3]], "n": "2"}, 6),
        ({"input": [{"role": "user", "content": "x"}] * 4}, 1),
        ({"messages": [], "n": 4}, 4),
        ({"prompt": [], "n": None}, 1),
    ],
)
def test_sequences_are_prompts_times_choices(body, count):
    assert count_sequences(body) == count


@pytest.mark.found
def test_all_keys_share_the_limit_on_sequences():
    limiter = SequenceLimiter(4)
    with limiter.admit(3), limiter.admit(1):
        with pytest.raises(Unavailable, match="4 of 4 places") as caught, limiter.admit(1):
            pass
        assert (caught.value.code, caught.value.retry_after) == ("queue_full", 1)
    # Waiting would not help, so clients must not retry.
    with pytest.raises(BadRequest, match="needs 5 places"), limiter.admit(5):
        pass
    with limiter.admit(4):
        pass


def test_the_rate_is_a_token_bucket():
    now = [0.0]
    limiter = KeyLimiter(0, 2.0, clock=lambda: now[0])

    def ask() -> bool:
        try:
            with limiter.admit("a"):
                return True
        except RateLimited:
            return False

    assert [ask() for _ in range(3)] == [True, True, False]
    now[0] += 0.5
    assert [ask() for _ in range(2)] == [True, False]
    now[0] += 60
    assert [ask() for _ in range(3)] == [True, True, False]


def test_embeddings_count_their_inputs():
    with pytest.raises(BadRequest, match="`input` is 65 prompts"):
        check_body({"prompt": "x", "input": ["a"] * 65})
    assert count_sequences({"prompt": "x", "input": ["a"] * 64}) == 64
    with pytest.raises(BadRequest, match="`input` is 1025 entries"):
        check_body({"input": [USER] * 1025})


async def test_shutdown_finishes_running_requests_and_refuses_new_ones(api):
    stopped = asyncio.Event()
    shutdown = Shutdown(30, stopped.set)
    api.replace(shutdown=shutdown)
    await api.put("m", make_mask(0))
    async with api.client("infer") as client:

        async def ask(**more):
            return await client.post("/v1/chat/completions", json={"model": "m", **more})

        running = asyncio.create_task(ask(stream=True))
        while not api.calls:
            await asyncio.sleep(0.01)
        assert (await client.get("/readyz")).status_code == 200
        shutdown.start()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        refused = await ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "stopping"
        assert (await client.get("/v1/models")).status_code == 200
        assert not stopped.is_set()
        api.hold.set()
        assert (await running).status_code == 200
        await asyncio.wait_for(stopped.wait(), 5)


async def test_requests_are_aborted_after_the_timeout_or_at_a_second_signal():
    for seconds, again in ((0.05, False), (60, True)):
        stopped = asyncio.Event()
        shutdown = Shutdown(seconds, stopped.set)
        with shutdown.track_request():
            shutdown.start()
            if again:
                shutdown.start()
            await asyncio.wait_for(stopped.wait(), 5)


async def test_the_middleware_applies_all_limits(api):
    await api.put("m", make_mask(0))
    async with api.client("infer") as client:

        async def ask(**more):
            return await client.post("/v1/chat/completions", json={"model": "m", **more})

        assert (await ask()).status_code == 200
        refused = await ask(chat_template="{{ x }}")
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "field_refused"
        assert refused.json()["error"]["param"] == "chat_template"
        api.replace(key_limiter=KeyLimiter(1, 0))
        running = asyncio.create_task(ask(stream=True))
        while not api.calls or len(api.calls) < 2:
            await asyncio.sleep(0.01)
        turned_away = await ask()
        assert turned_away.status_code == 429
        assert turned_away.headers["retry-after"] == "1"
        api.replace(key_limiter=KeyLimiter(0, 0), sequence_limiter=SequenceLimiter(1))
        with api.state.sequence_limiter.admit(1):
            full = await ask(stream=True)
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert full.json()["error"]["code"] == "queue_full"
        api.hold.set()
        await running
        assert (await ask()).status_code == 200
