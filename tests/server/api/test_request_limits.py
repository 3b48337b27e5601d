"""What requests may ask for, and how much of it at once."""

from __future__ import annotations

import asyncio

import pytest
from bmt_server.api.admission import Admission, Queue
from bmt_server.api.request_limits import LONGEST, MOST, PROMPTS, REFUSED, check, salt, sequences
from bmt_server.api.shutdown import Drain
from bmt_server.errors import BadRequest, RateLimited, Unavailable

from tests.support.replica import make_mask

USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("field", REFUSED)
def test_refused_fields_are_named(field):
    with pytest.raises(BadRequest, match=field) as caught:
        check({"messages": [USER], field: {"a": 1} if "kwargs" in field else "text"})
    assert (caught.value.code, caught.value.param) == ("field_refused", field)
    check({"messages": [USER], field: None})  # as clients send what they do not set


@pytest.mark.parametrize("field", MOST)
@pytest.mark.parametrize("write", [int, float, str])
def test_numbers_are_bounded_however_they_are_written(field, write):
    """vLLM reads 65.0 and "65" as 65, and -1 as all."""
    check({field: write(MOST[field])})
    for value in (MOST[field] + 1, -1, 10**9):
        with pytest.raises(BadRequest, match=f"`{field}` is .*0 to {MOST[field]}") as caught:
            check({field: write(value)})
        assert caught.value.code == "field_out_of_bounds"


@pytest.mark.parametrize("field", LONGEST)
def test_lists_are_bounded(field):
    make = (lambda n: {str(i): 1 for i in range(n)}) if field == "logit_bias" else list
    entries = LONGEST[field]
    check({field: make(entries) if field == "logit_bias" else [1] * entries})
    with pytest.raises(BadRequest, match=f"`{field}` is {entries + 1} entries"):
        check({field: make(entries + 1) if field == "logit_bias" else [1] * (entries + 1)})


def test_prompts_are_counted_and_token_ids_are_one():
    check({"prompt": [5] * 1000})
    check({"prompt": ["a"] * PROMPTS})
    for prompt in (["a"] * (PROMPTS + 1), [[5]] * (PROMPTS + 1)):
        with pytest.raises(BadRequest, match="prompts"):
            check({"prompt": prompt})
    with pytest.raises(BadRequest, match="characters"):
        check({"stop": "x" * 2000})


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
def test_media_are_refused_however_deep(part):
    for body in ({"messages": [{"role": "user", "content": [part]}]}, {"input": [part]}):
        with pytest.raises(BadRequest, match="text alone"):
            check(body)


def test_text_that_speaks_of_images_is_text():
    check({"messages": [{"role": "user", "content": [{"type": "text", "text": "image_url"}]}]})
    tool = {"type": "function", "function": {"name": "image", "parameters": {}}}
    check({"messages": [USER], "tools": [tool]})
    use = {"type": "tool_use", "name": "open", "input": {"type": "file", "path": "a"}}
    check({"messages": [{"role": "assistant", "content": [use]}]})


def test_tenants_have_salts_of_their_own():
    bodies = []
    for tenant in ("default", "a", "b", "a"):
        bodies.append({})
        salt(bodies[-1], "/v1/completions", tenant)
    assert bodies[0] == {}
    assert bodies[1] == bodies[3] != bodies[2]
    other = {}
    salt(other, "/v1/messages", "a")
    assert other == {}


def test_concurrency_is_each_keys_own():
    admission = Admission(2, 0)
    with admission.one("a"), admission.one("a"), admission.one("b"):
        with pytest.raises(RateLimited, match="2 requests running") as caught, admission.one("a"):
            pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
    with admission.one("a"):
        pass
    assert admission._running == {}


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
def test_sequences_are_choices_of_prompts(body, count):
    assert sequences(body) == count


def test_the_queue_is_everybodys():
    queue = Queue(4)
    with queue.room(3), queue.room(1):
        with pytest.raises(Unavailable, match="4 of 4 places") as caught, queue.room(1):
            pass
        assert (caught.value.code, caught.value.retry_after) == ("queue_full", 1)
    with pytest.raises(Unavailable, match="needs 5"), queue.room(5):
        pass
    with queue.room(4):
        pass


def test_the_rate_is_a_bucket_that_fills():
    now = [0.0]
    admission = Admission(0, 2.0, clock=lambda: now[0])

    def ask() -> bool:
        try:
            with admission.one("a"):
                return True
        except RateLimited:
            return False

    assert [ask() for _ in range(3)] == [True, True, False]
    now[0] += 0.5
    assert [ask() for _ in range(2)] == [True, False]
    now[0] += 60
    assert [ask() for _ in range(3)] == [True, True, False]


async def test_a_server_that_stops_ends_what_runs_and_takes_nothing_new(api):
    stopped = asyncio.Event()
    api.runtime.drain = drain = Drain(30, stopped.set)
    await api.put("m", make_mask(0))
    async with api.client("infer") as client:

        async def ask(**more):
            return await client.post("/v1/chat/completions", json={"model": "m", **more})

        running = asyncio.create_task(ask(stream=True))
        while not api.calls:
            await asyncio.sleep(0.01)
        assert (await client.get("/readyz")).status_code == 200
        drain.begin()
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


async def test_what_does_not_end_in_time_is_cut_off_and_a_second_signal_does_it_at_once():
    for seconds, again in ((0.05, False), (60, True)):
        stopped = asyncio.Event()
        drain = Drain(seconds, stopped.set)
        with drain.one():
            drain.begin()
            if again:
                drain.begin()
            await asyncio.wait_for(stopped.wait(), 5)


async def test_the_gate_asks(api):
    await api.put("m", make_mask(0))
    async with api.client("infer") as client:

        async def ask(**more):
            return await client.post("/v1/chat/completions", json={"model": "m", **more})

        assert (await ask()).status_code == 200
        refused = await ask(chat_template="{{ x }}")
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "field_refused"
        assert refused.json()["error"]["param"] == "chat_template"
        api.runtime.admission = Admission(1, 0)
        running = asyncio.create_task(ask(stream=True))
        while not api.calls or len(api.calls) < 2:
            await asyncio.sleep(0.01)
        turned_away = await ask()
        assert turned_away.status_code == 429
        assert turned_away.headers["retry-after"] == "1"
        api.runtime.admission, api.runtime.queue = Admission(0, 0), Queue(1)
        with api.runtime.queue.room(1):
            full = await ask(stream=True)
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert full.json()["error"]["code"] == "queue_full"
        api.hold.set()
        await running
        assert (await ask()).status_code == 200
