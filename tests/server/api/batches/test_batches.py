"""`/v1/batches` by the stock client: answers, errors, ends, other tenants, live requests first."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import openai
import pytest
from bmt_server.api.admission import KeyLimiter, SequenceLimiter
from bmt_server.api.batches import line_queue, lines
from bmt_server.api.batches.room import Room
from bmt_server.api.canary.arm import Arm
from bmt_server.api.usage.caller import Caller
from bmt_server.api.usage.meter import UsageMeter
from bmt_server.registry.batches import store as batch_store

from tests.support.cpu_time import least_cpu
from tests.support.replica import make_mask
from tests.support.requests.batches import (
    CHAT,
    asked,
    created,
    ended,
    line,
    rows,
    text,
    until,
    upload,
)
from tests.support.requests.jobs import stock


async def test_each_line_has_one_row_by_the_mask_that_it_names(api, model):
    for name in ("one", "two"):
        assert (await api.put(name, make_mask(len(name)))).status_code == 201
    model.answers["bad"] = (400, "no")
    masks = ("one", "two", "tiny")
    batch = await created(
        api,
        [asked(f"w{n}", model=masks[n % 3]) for n in range(40)]
        + [asked("bad"), asked("x", model="none")],
        metadata={"run": "7"},
    )
    assert (batch.status, batch.endpoint, batch.metadata) == ("validating", CHAT, {"run": "7"})
    assert batch.expires_at == batch.created_at + 86_400
    batch = await ended(api, batch.id)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (42, 40, 2)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    right, wrong = await rows(api, batch.output_file_id), await rows(api, batch.error_file_id)
    assert list(right) == [f"w{n}" for n in range(40)]
    for n, (word, row) in enumerate(right.items()):
        response = row["response"]
        assert (response["status_code"], row["error"]) == (200, None)
        assert response["body"]["word"] == word
        assert response["body"]["model"].partition("@")[0] == masks[n % 3]
        assert response["request_id"].startswith("batch_req_")
    assert {name: row["response"]["status_code"] for name, row in wrong.items()} == {
        "bad": 400,
        "x": 404,
    }
    assert wrong["x"]["response"]["body"]["error"]["code"] == "model_not_found"
    async with stock(api, "admin") as client:
        kept = await client.files.retrieve(batch.output_file_id)
        assert (kept.purpose, kept.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    # What was kept on the way is gone.
    assert not [p async for p in api.state.files.objects.pages("default/parts") if p]
    lines_by = api.state.metrics.batch_lines
    assert lines_by.labels("completed")._value.get() == 40
    assert lines_by.labels("failed")._value.get() == 2


WRONG = {
    "not JSON": (b"{", "invalid_json_line", None),
    "a list": (b"[1]", "invalid_json_line", None),
    "deep": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json_line", None),
    "no id": ({**line(), "custom_id": None}, "missing_required_parameter", "custom_id"),
    "empty id": (line(""), "invalid_custom_id", "custom_id"),
    "a number as id": (line(7), "invalid_custom_id", "custom_id"),
    "the same id": (line("first"), "duplicate_custom_id", "custom_id"),
    "method": (line(method="GET"), "invalid_method", "method"),
    "url": (line(url="/v1/completions"), "invalid_url", "url"),
    "another server": (line(url="http://x/v1/chat/completions"), "invalid_url", "url"),
    "body": ({**line(), "body": "x"}, "invalid_body", "body"),
    "no body": ({**line(), "body": None}, "missing_required_parameter", "body"),
    "no model": (line(model=None), "missing_required_parameter", "body.model"),
    "stream": (line(stream=True), "invalid_body", "body.stream"),
    "extra": ({**line(), "tenant": "other"}, "unknown_parameter", "tenant"),
    "long": (b'{"custom_id": "' + b"x" * 300_000 + b'"}', "line_too_long", None),
}


async def test_every_wrong_line_is_named_and_none_runs(api, model):
    batch = await created(api, [line("first"), b"", *(one for one, _, _ in WRONG.values())])
    batch = await ended(api, batch.id)
    assert (batch.status, batch.request_counts.total) == ("failed", 0)
    found = [(error.line, error.code, error.param) for error in batch.errors.data]
    # The second line is empty, and none.
    assert found == [(n + 3, code, param) for n, (_, code, param) in enumerate(WRONG.values())]
    assert all(error.message for error in batch.errors.data)
    assert (batch.output_file_id, batch.error_file_id, batch.failed_at is None) == (
        None,
        None,
        False,
    )
    assert not model.asked


@pytest.mark.parametrize(("many", "code"), [(0, "empty_file"), (3, "too_many_lines")])
async def test_bounds_on_the_lines_of_a_file(api, monkeypatch, many, code):
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    batch = await ended(api, (await created(api, [b"", *(line(str(n)) for n in range(many))])).id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", code)


async def test_what_a_batch_cannot_have_is_refused_at_once(api):
    file = await upload(api, [line()])
    right = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    training = {"messages": [{"role": "user", "content": "x"}]}
    async with stock(api, "admin") as client:
        data = json.dumps(training).encode()
        rft = await client.files.create(file=("t.jsonl", data), purpose="fine-tune")
        for changes, code, param in (
            ({"input_file_id": "file-" + "0" * 24}, "file_not_found", "input_file_id"),
            ({"input_file_id": rft.id}, "invalid_file", "input_file_id"),
            ({"endpoint": "/v1/masks"}, "bad_request", "endpoint"),
            ({"endpoint": "/tokenize"}, "bad_request", "endpoint"),
            ({"completion_window": "forever"}, "bad_request", "completion_window"),
            ({"completion_window": "8d"}, "bad_request", "completion_window"),
            (
                {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
                "bad_request",
                "output_expires_after",
            ),
            ({"metadata": {"k" * 65: "v"}}, "bad_request", "metadata.kkk"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.batches.create(**{**right, **changes})
            assert caught.value.code == code
            assert caught.value.param.startswith(param)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.fine_tuning.jobs.create(model="tiny", training_file=file)
        assert "has rows for a batch" in str(caught.value)


async def test_another_tenant_sees_and_changes_nothing(api, model):
    model.hold.clear()
    mine = await created(api, [line()])
    theirs = await created(api, [line()], key="other")
    async with stock(api, "other") as client:
        for call in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(mine.id)
        assert [b.id async for b in client.batches.list()] == [theirs.id]
        with pytest.raises(openai.BadRequestError, match="no file"):
            await client.batches.create(
                input_file_id=mine.input_file_id, endpoint=CHAT, completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError):
            await client.batches.list(after=mine.id)
    async with stock(api, "upload") as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.batches.list()
    model.hold.set()


async def test_lists_have_pages_and_a_tenant_a_bound(start, model, monkeypatch):
    monkeypatch.setattr(batch_store, "MAX_OPEN", 3)
    async with start("a", model, batch_sequences=0) as api:
        ids = [(await created(api, [line()])).id for _ in range(3)]
        async with stock(api, "admin") as client:
            page = await client.batches.list(limit=2)
            assert ([b.id for b in page.data], page.has_more) == (ids[:0:-1], True)
            assert [b.id async for b in page] == ids[::-1]
            file = await upload(api, [line()])
            new = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
            with pytest.raises(openai.BadRequestError) as caught:
                await client.batches.create(**new)
            assert caught.value.code == "too_many_batches"
            assert (await client.batches.cancel(ids[0])).status == "cancelled"
            await client.batches.create(**new)


async def test_a_cancelled_batch_keeps_the_answers_that_there_are(api, model):
    model.answers["w0"] = (400, "no")
    model.hold_after = 7
    batch = await created(api, [asked(f"w{n}") for n in range(30)])
    while not model.running:
        await asyncio.sleep(0.01)
    async with stock(api, "admin") as client:
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await ended(api, batch.id)
        assert (await client.batches.cancel(batch.id)).status == batch.status == "cancelled"
    right, wrong = await rows(api, batch.output_file_id), await rows(api, batch.error_file_id)
    assert {*right, *wrong} == {f"w{n}" for n in range(30)}
    assert not right.keys() & wrong.keys()
    assert wrong["w0"]["response"]["status_code"] == 400
    left = [row for row in wrong.values() if row["response"] is None]
    assert {row["error"]["code"] for row in left} == {"batch_cancelled"}
    assert (len(right), len(left), model.running) == (6, 23, 0)


async def test_a_batch_ends_with_its_window(api, model):
    model.hold.clear()
    batch = await created(api, [asked("a"), asked("b")], window="1s")
    batch = await ended(api, batch.id)
    assert (batch.status, batch.expired_at is None, batch.output_file_id) == (
        "expired",
        False,
        None,
    )
    found = await rows(api, batch.error_file_id)
    assert {row["error"]["code"] for row in found.values()} == {"batch_expired"}
    assert (batch.request_counts.failed, len(found)) == (2, 2)
    async with stock(api, "admin") as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.batches.cancel(batch.id)
    assert caught.value.code == "batch_state"


async def test_a_revoked_key_stops_its_batches(api, model):
    made, record = await api.state.keys.create(("infer",))
    api.keys["gone"] = made
    file = await upload(api, [asked(f"w{n}") for n in range(40)])
    model.hold.clear()
    async with stock(api, "gone") as client:
        batch = await client.batches.create(
            input_file_id=file, endpoint=CHAT, completion_window="24h"
        )
    await until(api, batch.id, "in_progress")
    while not model.running:
        await asyncio.sleep(0.01)
    async with api.client() as client:
        assert (await client.delete(f"/v1/keys/{record.key_id}")).status_code == 204
    await api.state.keys.refresh()
    model.hold.set()
    batch = await ended(api, batch.id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "invalid_api_key")
    assert sum(model.asked.values()) < 40
    assert made not in batch.model_dump_json()
    right, wrong = await rows(api, batch.output_file_id), await rows(api, batch.error_file_id)
    assert len(right) + len(wrong) == 40
    assert {row["error"]["code"] for row in wrong.values()} == {"batch_failed"}


async def test_usage_is_the_keys_and_no_time_is_a_users(api):
    batch = await ended(api, (await created(api, [asked(f"w{n}") for n in range(5)])).id)
    assert batch.status == "completed"
    await api.state.usage.flush()
    async with api.client() as client:
        used = (await client.get("/v1/usage")).json()
    assert "5" in json.dumps(used)


async def test_limits_of_the_key_delay_its_lines_and_fail_none(start, model):
    async with start("a", model, key_concurrency=4) as api:
        api.replace(key_limiter=KeyLimiter(4, 50.0))
        batch = await ended(api, (await created(api, [asked(f"w{n}") for n in range(60)])).id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 60)
        assert model.most <= 2  # the other half is for the key's live requests


def test_batches_of_a_key_share_the_half_of_its_concurrency():
    places = Room(16, SequenceLimiter(100))
    with places.batch("a", "key"), places.batch("b", "key"), places.batch("c", "other"):
        for batch in "aabbc":
            if places.fits(batch, 1, 2):
                places.take(batch, 1)
        running = {batch: places._of_batch[batch] for batch in "abc"}
    assert running == {"a": 1, "b": 1, "c": 1}


async def test_the_time_of_a_line_is_none_of_a_split_version_either(api):
    arm, seen = Arm("m:prod", "m@0", "canary"), []
    meter = UsageMeter(
        api.state.metrics,
        SimpleNamespace(engine_finished=lambda *given: seen.append(given[-1])),
        api.state.usage,
        api.state.budgets,
    )
    for background in (False, True):
        caller = Caller("k", "default", "m", arm, background=background)
        figures = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "ttft_s": 1.0}
        meter.request_finished("m", caller=caller, outcome="stop", **figures)
    assert seen == [1.0, None]
    known = list(api.state.versions.seconds.collect()[0].samples)
    api.state.versions.answered(arm, 200, None)
    assert list(api.state.versions.seconds.collect()[0].samples) == known
    batch = await created(api, [asked("a")])
    assert (await ended(api, batch.id)).status == "completed"


async def test_lines_take_a_quarter_while_live_requests_run(start, model):
    async with start("a", model, batch_sequences=8) as api:
        model.hold.clear()
        with api.state.sequence_limiter.admit(3):
            batch = await created(api, [asked(f"w{n}") for n in range(30)])
            while model.running < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert model.running == 2
            with api.state.sequence_limiter.admit(5):
                model.hold.set()
                while model.running:
                    await asyncio.sleep(0.01)
                seen = sum(model.asked.values())
                await asyncio.sleep(0.2)
                # Live requests take all places.
                assert sum(model.asked.values()) == seen < 30
        model.hold.clear()
        while model.running < 8:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert model.running == 8
        model.hold.set()
        assert (await ended(api, batch.id)).status == "completed"


async def test_batches_at_once_share_the_places(start, model):
    async with start("a", model, batch_sequences=4) as api:
        model.hold.clear()
        first = await created(api, [asked(f"a{n}") for n in range(20)])
        while model.running < 4:
            await asyncio.sleep(0.01)
        second = await created(api, [asked(f"b{n}") for n in range(20)], key="other")
        await until(api, second.id, "in_progress", key="other")
        for _ in range(6):
            model.hold.set()
            await asyncio.sleep(0)
            model.hold.clear()
            await asyncio.sleep(0.1)
        assert sum(model.asked[f"b{n}"] for n in range(20)) >= 2
        model.hold.set()
        for one, key in ((first, "admin"), (second, "other")):
            assert (await ended(api, one.id, key)).request_counts.completed == 20


async def test_a_fault_of_the_server_is_tried_again(api, model, monkeypatch):
    monkeypatch.setattr(line_queue, "_TRIES", 2)
    model.answers |= {"busy": (503, "queue_full"), "broken": (500, "internal")}
    batch = await created(api, [asked("busy"), asked("broken"), asked("a")])
    while model.asked["busy"] < 2 or model.asked["broken"] < 1:
        await asyncio.sleep(0.01)
    del model.answers["busy"]
    batch = await ended(api, batch.id)
    assert set(await rows(api, batch.output_file_id)) == {"busy", "a"}
    wrong = await rows(api, batch.error_file_id)
    assert wrong["broken"]["response"]["status_code"] == 500
    assert model.asked["broken"] == 2


async def test_answers_of_an_engine_that_dies_are_none(api, model, monkeypatch):
    model.answers["a"] = (500, "EngineDeadError")
    healthy = [False]

    async def is_healthy():
        return healthy[0] or not model.asked["a"]

    monkeypatch.setattr(api.engine, "healthy", is_healthy)
    batch = await created(api, [asked("a")])
    while not model.asked["a"]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert (await until(api, batch.id, "in_progress")).request_counts.failed == 0
    model.answers.clear()
    healthy[0] = True
    batch = await ended(api, batch.id)
    assert set(await rows(api, batch.output_file_id)) == {"a"}


async def test_files_without_a_place_wait_for_one(start, model, monkeypatch):
    monkeypatch.setattr("bmt_server.api.batches.run._NO_PLACE_S", 0.2)
    async with start("a", model, tenant_files=2) as api:
        batch = await created(api, [asked("a")])
        other = await upload(api, [line()])
        while not (found := await until(api, batch.id, "finalizing")).errors:
            await asyncio.sleep(0.02)
        assert found.errors.data[0].code == "quota_exceeded"
        async with stock(api, "admin") as client:
            await client.files.delete(other)
        batch = await ended(api, batch.id)
        assert (batch.status, batch.errors) == ("completed", None)
        assert set(await rows(api, batch.output_file_id)) == {"a"}


async def test_a_file_that_is_deleted_meanwhile_ends_the_batch(start, model):
    async with start("a", model, batch_sequences=0) as api:
        batch = await created(api, [line()])
        async with stock(api, "admin") as client:
            await client.files.delete(batch.input_file_id)
    async with start("b", model) as api:
        batch = await ended(api, batch.id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "file_not_found")


async def test_a_server_without_files_has_no_batches(start, model):
    async with start("a", model, files_url="") as api, stock(api, "admin") as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.batches.list()
        assert caught.value.code == "files_off"


async def test_a_line_may_not_step_ahead(api, model, monkeypatch):
    """Its priority is behind all live requests, whatever it asks for."""
    schema = type("Schema", (), {"fields": {"priority"}, "check": lambda *_: None})()
    runner = api.state.batch_runner
    schemas = type("Schemas", (), {"get": lambda *_: schema})()
    monkeypatch.setattr(runner, "_parts", replace(runner._parts, schemas=schemas))
    given = {"none": {}, "zero": {"priority": 0}, "text": {"priority": "-3"}}
    given["late"] = {"priority": 2**30}
    batch = await created(api, [asked(name, **body) for name, body in given.items()])
    batch = await ended(api, batch.id)
    found = await rows(api, batch.output_file_id)
    assert {name: row["response"]["body"]["priority"] for name, row in found.items()} == {
        **dict.fromkeys(("none", "zero", "text"), line_queue.LINE_PRIORITY),
        "late": 2**30,
    }


def test_a_file_of_empty_lines_is_looked_at_for_a_moment(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"\n" * (8 << 20))

    def found() -> int:
        with path.open("rb") as file:
            return len(lines.Lines.read(file))

    assert found() == 0
    assert least_cpu(found, 1) < 1
    assert text([b"x"]) == b"x\n"
