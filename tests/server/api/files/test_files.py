"""`/v1/files`: by the stock client, across tenants and scopes, with quotas, faults and attacks."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace

import openai
import pytest
from bmt_server.api.admission import UploadLimiter
from bmt_server.errors import BlobsDown, RegistryDown
from bmt_server.registry.files.record import FileRecord

from tests.support.requests.rows import form, graded, jsonl, pair, supervised


def stock(api, key="upload"):
    """The stock client, which reaches the replica without a socket."""
    return openai.AsyncOpenAI(
        api_key=api.keys[key], base_url="http://test/v1", http_client=api.client(key), max_retries=0
    )


async def post(api, data, key="upload", **fields):
    async with api.client(key) as client:
        return await client.post("/v1/files", **form(data, **fields))


def objects(kept):
    return [path for path in kept.rglob("*") if path.is_file()]


async def test_the_stock_client_keeps_lists_reads_and_deletes_files(files, kept):
    data = jsonl([supervised()] * 12)
    async with stock(files) as client:
        made = await client.files.create(file=("train.jsonl", data), purpose="fine-tune")
        assert (made.filename, made.bytes, made.purpose) == ("train.jsonl", len(data), "fine-tune")
        assert (made.status, made.rows, made.form) == ("processed", 12, "supervised")
        other = await client.files.create(file=("b.jsonl", jsonl([pair()])), purpose="fine-tune")
        assert {f.id for f in (await client.files.list()).data} == {made.id, other.id}
        first = await client.files.list(limit=1)
        assert first.has_more
        rest = [f.id async for f in client.files.list(limit=1)]
        assert len(rest) == 2
        assert await client.files.retrieve(made.id) == made
        assert (await client.files.content(made.id)).content == data
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        assert [f.id for f in (await client.files.list()).data] == [other.id]
    assert len(objects(kept)) == 1


@pytest.mark.parametrize("row", [supervised(), pair(), graded()], ids=["sft", "dpo", "rft"])
async def test_every_form_of_rows_is_known(files, row):
    answer = await post(files, jsonl([row]))
    wanted = {"input": "dpo"}.get(next(iter(row))) or (
        "supervised" if len(row["messages"]) == 2 else "reinforcement"
    )
    assert answer.json()["form"] == wanted


def changed(row, **fields):
    return {**row, **fields}


def said(**fields):
    """A supervised row whose first message is changed."""
    row = supervised()
    row["messages"][0] = {**row["messages"][0], **fields}
    return row


def called(arguments):
    """A supervised row whose answer is a call."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [call]},
        ]
    }


NESTED = "[" * 100 + "]" * 100
WRONG = {
    "not json": (b"{", "row 2: not JSON"),
    "a list": ([1], "expected an object"),
    "no form": ({"prompt": "x"}, "neither messages nor input"),
    "another form": (pair(), "its form is dpo"),
    "no messages": ({"messages": []}, "messages: expected a list"),
    "role": (said(role="bot"), "messages[0].role"),
    "no content": (said(content=None), "messages[0].content: missing"),
    "number": (said(content=5), "messages[0].content: expected text"),
    "image": (said(content=[{"type": "image_url"}]), "messages[0].content[0]"),
    "unknown field": (said(audio="x"), "messages[0].audio"),
    "weight": (said(weight=1), "messages[0].weight"),
    "tool call": (said(tool_calls=[{}]), "messages[0].tool_calls"),
    "column": (changed(supervised(), label=1), "label: no column"),
    "tools": (changed(supervised(), tools=[{}]), "tools[0].function"),
    "pair without": ({"input": {"messages": [{"role": "user", "content": "x"}]}}, "missing"),
    "equal pair": (pair(rejected="5"), "non_preferred_output: equal"),
    "surrogate": (b'{"messages": "\\ud800"}', "row 2"),
    "deep": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "row 2"),
    # A worker's reader ends at a depth of its own.
    "nested": (changed(supervised(), tools=json.loads(NESTED)), "nested deeper than 64"),
    "nested arguments": (called(f'{{"x": {NESTED}}}'), "arguments: nested deeper than 64"),
    "arguments": (called("[1]"), "arguments: expected an object"),
    "long": (b'{"messages": "' + b"x" * (1 << 20), "row 2: longer than"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_row_is_named_with_its_field(files, kept, name):
    row, reason = WRONG[name]
    allow(files, 4 << 20)
    data = jsonl([supervised()]) + (row if isinstance(row, bytes) else json.dumps(row).encode())
    answer = await post(files, data)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_file", "file")
    assert error["message"].startswith("row 2")
    assert reason in error["message"]
    assert objects(kept) == []


def allow(api, max_bytes):
    """Let the replica take larger files."""
    settings = replace(api.state.settings, max_file_bytes=max_bytes)
    api.replace(settings=settings, file_uploads=UploadLimiter(max_bytes))


async def test_a_file_without_rows_is_refused(files):
    assert "no rows" in (await post(files, b"\n \n")).json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"expires_after[seconds]": "3600"}, "expires_after[seconds]"),
    ],
)
async def test_what_is_not_kept_to_is_refused_by_name(files, fields, param):
    answer = await post(files, jsonl([supervised()]), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_another_tenant_sees_and_changes_nothing(files):
    made = (await post(files, jsonl([supervised()]))).json()
    paths = [("GET", ""), ("GET", "/content"), ("DELETE", "")]
    async with files.client("other") as client:
        assert (await client.get("/v1/files")).json()["data"] == []
        for method, end in paths:
            answer = await client.request(method, f"/v1/files/{made['id']}{end}")
            assert answer.status_code == 404, (method, end)
            unknown = await client.request(method, f"/v1/files/file-{'0' * 24}{end}")
            assert answer.json()["error"]["code"] == unknown.json()["error"]["code"]
    for key, status in (("", 401), ("infer", 403)):
        async with files.client(key) as client:
            for method, end in (*paths, ("POST", None), ("GET", None)):
                path = "/v1/files" if end is None else f"/v1/files/{made['id']}{end}"
                assert (await client.request(method, path)).status_code == status
    async with files.client("upload") as client:
        assert (await client.get(f"/v1/files/{made['id']}")).status_code == 200


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/b.jsonl", "file-x\\..\\y"])
async def test_no_part_of_a_path_is_the_clients(files, kept, name):
    made = (await post(files, jsonl([supervised()]), name=name)).json()
    assert made["filename"] == name
    assert objects(kept) == [kept / "default" / made["id"]]
    async with files.client("upload") as client:
        for path in ("..%2f..%2fx", "%2e%2e", "file-" + "0" * 23 + "/", "..", "*"):
            answer = await client.get(f"/v1/files/{path}")
            assert answer.status_code in (200, 404)
            assert "default" not in answer.text
        content = await client.get(f"/v1/files/{made['id']}/content")
    assert name not in content.headers["content-disposition"]
    assert content.headers["x-content-type-options"] == "nosniff"


async def test_size_number_and_bytes_are_bounded(files, kept):
    row = jsonl([supervised(answer="x" * 1000)])
    large = await post(files, row * 1200)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

    async def endless():
        yield form_head()
        for _ in range(40):
            yield b"x" * (1 << 16)

    async with files.client("upload") as client:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/v1/files", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert objects(kept) == []
    some = row * 800
    for _ in range(2):
        assert (await post(files, some)).status_code == 200
    over = await post(files, some)
    assert (over.status_code, over.json()["error"]["code"]) == (413, "quota_exceeded")
    made = await post(files, jsonl([supervised()]))
    assert made.status_code == 200
    assert (await post(files, jsonl([supervised()]))).status_code == 413
    assert (await post(files, some, key="other")).status_code == 200
    async with files.client("upload") as client:
        await client.delete(f"/v1/files/{made.json()['id']}")
    assert (await post(files, jsonl([supervised()]))).status_code == 200
    assert len(objects(kept)) == 4


def form_head():
    return (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )


ROW = jsonl([supervised()])
FORMS = {
    "cut off": form_head() + ROW,
    "no file": b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nx\r\n--b--\r\n',
    "file as a field": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
    "two files": form_head() + ROW + b"\r\n" + form_head() + ROW + b"\r\n--b--\r\n",
    "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    "long header": b"--b\r\nX: " + b"x" * 5000 + b"\r\n\r\nx\r\n--b--\r\n",
    "many parts": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 40 + b"--b--",
    "long value": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 5000,
    "not utf-8": b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
    "no boundary": b"x" * 100,
    "control character": form_head().replace(b'"f"', b'"a\x1b[2J"') + ROW + b"\r\n--b--\r\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", FORMS)
async def test_hostile_forms_are_the_clients_fault(files, kept, name):
    async with files.client("upload") as client:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/v1/files", content=FORMS[name], headers=headers)
        assert answer.status_code == 400, answer.text
        for kind in ("application/json", "multipart/form-data", ""):
            answer = await client.post("/v1/files", content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 415
    assert objects(kept) == []


async def test_damaged_bytes_are_never_a_complete_answer(files, kept):
    made = (await post(files, jsonl([supervised()] * 9))).json()
    (path,) = objects(kept)
    data = path.read_bytes()
    async with files.client("upload") as client:
        for damaged in (data[:-1] + b"x", data[:-1]):
            path.write_bytes(damaged)
            answer = await client.get(f"/v1/files/{made['id']}/content")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "file_damaged")
        path.unlink()
        assert (await client.get(f"/v1/files/{made['id']}/content")).status_code == 503
        assert (await client.delete(f"/v1/files/{made['id']}")).status_code == 200


async def test_what_a_dead_server_left_is_removed(files, kept, monkeypatch):
    """An upload that ended between its record and its bytes counts for an hour, and no longer."""

    async def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.state.files._objects, "put_file", dies)
    with pytest.raises(KeyboardInterrupt):
        await files.state.files.add(record(), None)
    monkeypatch.undo()
    (kept / "default").mkdir(parents=True)
    (kept / "default" / record().id).write_bytes(b"half")
    quick = files.state.connection.quick
    assert await quick.hget("{bmt}:file-bytes", "default") == b"4"
    async with files.client("upload") as client:
        assert (await client.get("/v1/files")).json()["data"] == []
        assert (await client.get(f"/v1/files/{record().id}")).status_code == 404
        assert (await post(files, ROW)).status_code == 200
    assert len(objects(kept)) == 2
    old = record(created_at=int(time.time()) - 7200)
    await quick.hset("{bmt}:files:default", old.id, old.model_dump_json())
    await quick.zadd("{bmt}:files-changing:default", {old.id: old.created_at})
    assert (await post(files, ROW)).status_code == 200
    assert len(objects(kept)) == 2
    assert await quick.hget("{bmt}:file-bytes", "default") == str(2 * len(ROW)).encode()


def record(**fields):
    return FileRecord(
        **{
            **{"id": "file-" + "0" * 24, "tenant": "default", "filename": "f", "bytes": 4},
            **{"created_at": int(time.time()), "sha256": "0" * 64, "rows": 1},
            **{"form": "supervised", **fields},
        }
    )


async def test_a_store_that_fails_leaves_no_record(files, monkeypatch):
    async def fails(*_):
        raise BlobsDown("the object store of files does not answer; try again shortly")

    monkeypatch.setattr(files.state.files._objects, "put_file", fails)
    answer = await post(files, ROW)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert await files.state.connection.quick.hlen("{bmt}:files:default") == 0


async def test_a_lost_answer_leaves_no_file_without_its_bytes(files, kept, monkeypatch):
    """The registry has the record as ready, and is away before the server knows."""
    run, answered = files.state.files._run, []

    async def lost(source, *args):
        if len(answered) < 2:
            answered.append(await run(source, *args))
            if len(answered) < 2:
                return answered[0]
        raise RegistryDown("the mask registry does not answer; try again shortly")

    monkeypatch.setattr(files.state.files, "_run", lost)
    assert (await post(files, ROW)).status_code == 503
    monkeypatch.undo()
    async with files.client("upload") as client:
        listed = (await client.get("/v1/files")).json()["data"]
        read = [(await client.get(f"/v1/files/{f['id']}/content")).content for f in listed]
    assert read == [ROW] * len(listed)
    assert len(objects(kept)) == len(listed)


async def test_a_deletion_that_failed_is_repeated(files, kept, monkeypatch):
    made = (await post(files, ROW)).json()

    async def fails(*_):
        raise BlobsDown("the object store of files does not answer; try again shortly")

    async with files.client("upload") as client:
        with monkeypatch.context() as patch:
            patch.setattr(files.state.files._objects, "delete", fails)
            assert (await client.delete(f"/v1/files/{made['id']}")).status_code == 503
        assert (await client.get(f"/v1/files/{made['id']}")).status_code == 404
        assert len(objects(kept)) == 1
        assert (await client.delete(f"/v1/files/{made['id']}")).status_code == 200
        assert objects(kept) == []
        assert (await client.delete(f"/v1/files/{made['id']}")).status_code == 404


@pytest.mark.parametrize("forged", [b"\x80\x04}.", b"{}", b'{"id": "../x"}', b"null"])
async def test_a_forged_record_is_no_file(files, forged):
    name = "file-" + "1" * 24
    await files.state.connection.quick.hset("{bmt}:files:default", name, forged)
    async with files.client("upload") as client:
        assert (await client.get("/v1/files")).json()["data"] == []
        assert (await client.get(f"/v1/files/{name}")).status_code == 404
    other = record(tenant="other", state="ready").model_copy(update={"id": name})
    await files.state.connection.quick.hset("{bmt}:files:default", name, other.model_dump_json())
    async with files.client("upload") as client:
        for end in ("", "/content"):
            assert (await client.get(f"/v1/files/{name}{end}")).status_code == 404


async def test_without_a_place_there_are_no_files(api):
    async with api.client("upload") as client:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/files/x")):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "files_off")


async def test_a_large_file_takes_little_memory(files, kept):
    """A gigabyte would not fit; here 64 MiB are more than what the process grows by."""
    allow(files, 1 << 30)
    files.state.files._most_bytes = 0
    row = jsonl([supervised(answer="x" * 60_000)])

    async def parts():
        yield form_head()
        for _ in range(1100):
            yield row
        yield b"\r\n--b--\r\n"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with files.client("upload") as client:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/v1/files", content=parts(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == 1100 * len(row)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 48 << 20


@pytest.mark.parametrize("rows", [16, 10_000])
async def test_a_full_disk_is_said(files, kept, rows):
    """By a write, and by what the file's buffer still has at its end."""
    data = jsonl([supervised()])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) * 8, hard))
    try:
        answer = await post(files, data * rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 507, answer.text
    assert "disk is full" in answer.json()["error"]["message"]
    assert objects(kept) == []


@pytest.mark.found
async def test_a_record_that_cannot_be_read_is_named_and_can_be_deleted(files, kept):
    """It counts in the quota, and no list shows it."""
    store = files.state.connection.quick
    lost: list[str] = []
    while (over := await post(files, ROW)).status_code == 200:
        lost.append(over.json()["id"])
    assert "cannot be read" not in over.text
    await store.hset("{bmt}:files:default", lost[0], "{")
    over = await post(files, ROW)
    assert f"1 cannot be read, as {lost[0]}" in over.json()["error"]["message"]
    async with files.client("upload") as client:
        gone = await client.delete(f"/v1/files/{lost[0]}")
        assert gone.json() == {"id": lost[0], "object": "file", "deleted": True}
        assert (await client.delete(f"/v1/files/{lost[0]}")).status_code == 404
    assert int(await store.hget("{bmt}:file-bytes", "default")) == len(ROW) * (len(lost) - 1)
    assert len(objects(kept)) == len(lost) - 1
    assert (await post(files, ROW)).status_code == 200
