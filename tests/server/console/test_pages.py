"""Pages of the console: what each key sees, what forms change, and texts of strangers as text."""

from __future__ import annotations

import asyncio
import hashlib
import html
import io
import json
import re
import resource
import tempfile
from contextlib import ExitStack
from html.parser import HTMLParser

import bmt_core
import httpx2
import pytest
from bmt_server.api.admission import KeyLimiter, UploadLimiter
from bmt_server.console.charts import MAX_POINTS, curves
from bmt_server.console.page import HEADERS
from bmt_server.console.pages.traffic import read
from bmt_server.registry.files.record import RESULTS, FileRecord, new_file_id
from fastapi.responses import PlainTextResponse
from prometheus_client.parser import text_string_to_metric_families

from tests.support.http.console import HOSTILE, METRICS, Worker, answering
from tests.support.replica import make_mask
from tests.support.requests.rows import jsonl, pair, supervised

PAGES = ("masks", "compare", "jobs", "files", "traffic", "usage", "keys")


class Elements(HTMLParser):
    """Elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def check_page(answer: httpx2.Response) -> None:
    """A page that its own policy lets work, and nothing that the policy is against."""
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    if not answer.headers["content-type"].startswith("text/html"):
        return
    for tag, attributes in Elements(answer.text).found:
        assert tag not in ("style", "iframe", "object", "embed", "base")
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes["src"] == "/console/static/console.js"
        for name in ("src", "href", "action"):
            value = attributes.get(name) or "/console"
            assert value.startswith(("/console", "?", "#")), (tag, value)


def links(answer: httpx2.Response) -> set[str]:
    nav = re.search(r"<nav.*?</nav>", answer.text, re.DOTALL)
    found = re.findall(r'href="/console/(\w+)"', nav[0]) if nav else []
    return set(found)


async def publish(site, name="m", seeds=(0,), key="admin"):
    for seed in seeds:
        assert (await site.put(name, make_mask(seed), key)).status_code == 201


async def add_file(site, key="upload", name="train.jsonl", rows=None):
    async with site.client(key) as client:
        data = jsonl(rows or [supervised()])
        files = {"file": (name, data)}
        answer = await client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)
        return answer.json()["id"]


SEES = {
    "infer": {"masks", "compare", "usage"},
    "upload": {"masks", "jobs", "files", "usage"},
    "promote": {"masks", "usage"},
    "train": {"masks", "usage"},
    "metrics": {"traffic"},
    "admin": set(PAGES),
    "operator": set(PAGES),
    # Figures of all tenants are the operator's own.
    "other": set(PAGES) - {"traffic"},
}


@pytest.mark.parametrize("key", SEES)
async def test_a_key_sees_what_the_api_shows_it(site, visit, key):
    browser = await visit(key)
    answers = {page: await browser.get(f"/{page}") for page in PAGES}
    for answer in answers.values():
        check_page(answer)
        # This app has no vLLM, and so no metrics.
        assert links(answer) == SEES[key]
    # The start is the first page that is shown.
    start = (await browser.get("")).headers["location"].removeprefix("/console/")
    assert start == next(page for page in PAGES if page in SEES[key])
    shown = {page for page, answer in answers.items() if answer.status_code != 403}
    # Of `compare`, the form is shown and the API refuses the request.
    assert shown - {"compare"} == SEES[key] - {"compare"}


async def test_masks_of_another_tenant_are_not_shown(site, visit):
    await publish(site, "secret-mask")
    other = await visit("other")
    assert "secret-mask" not in (await other.get("/masks")).text
    answer = await other.get("/masks/secret-mask")
    assert answer.status_code == 404
    answer = await other.send("/masks", "/masks/secret-mask/alias", alias="prod", digest="0" * 64)
    assert answer.status_code == 404


async def test_upload_alias_and_rollback(site, visit):
    browser = await visit("admin")
    for seed in (0, 1):
        answer = await browser.upload(
            "/masks", "m.bmt", bmt_core.encode(make_mask(seed)), name="m", alias=""
        )
        assert answer.headers["location"] == "/console/masks/m?done=uploaded"
    page = await browser.get("/masks/m?done=uploaded")
    assert "The mask is published." in page.text
    check_page(page)
    async with site.client() as client:
        new, old = (await client.get("/v1/masks/m/versions")).json()["data"]
        # Administrators see who published a version, as in the API.
        assert "by admin from" in page.text
        assert "by admin" not in (await (await visit("upload")).get("/masks/m")).text
        answer = await browser.send(
            "/masks/m", "/masks/m/alias", alias="latest", digest=old["digest"], was=new["digest"]
        )
        assert answer.headers["location"] == "/console/masks/m?done=rolled-back"
        assert (await client.get("/v1/masks/m")).json()["digest"] == old["digest"]
        # On a page that another's change has made old, nothing is undone.
        answer = await browser.send(
            "/masks/m", "/masks/m/alias", alias="latest", digest=new["digest"], was=new["digest"]
        )
        assert answer.status_code == 412
        assert (await client.get("/v1/masks/m")).json()["digest"] == old["digest"]
        await browser.send("/masks/m", "/masks/m/alias", alias="prod", digest=new["digest"])
        found = (await client.get("/v1/masks/m/aliases/prod")).json()
        assert found["digest"] == new["digest"]
        body = {"digest": new["digest"], "canary": {"digest": old["digest"], "percent": 10}}
        assert (await client.put("/v1/masks/m/aliases/prod", json=body)).status_code == 200
        assert "canary of prod, 10 %" in (await browser.get("/masks/m")).text
        await browser.send("/masks/m", "/masks/m/rollback", alias="prod")
        assert (await client.get("/v1/masks/m/aliases/prod")).json()["canary"] is None


@pytest.mark.parametrize("key", ["infer", "upload", "promote"])
async def test_forms_that_a_key_may_not_send_are_neither_shown_nor_taken(site, visit, key):
    await publish(site, "m", (0, 1))
    browser = await visit(key)
    listed, shown = (await browser.get("/masks")).text, (await browser.get("/masks/m")).text
    assert ("Upload a mask" in listed) == (key == "upload")
    assert ("Roll back" in shown) == (key == "upload")
    assert ("Set alias" in shown) == (key == "promote")
    async with site.client() as client:
        newest = (await client.get("/v1/masks/m")).json()["digest"]
    answer = await browser.send("/masks/m", "/masks/m/alias", alias="prod", digest=newest)
    assert (answer.status_code == 303) == (key == "promote")
    data = bmt_core.encode(make_mask(7))
    answer = await browser.upload("/masks", "m.bmt", data, name="m")
    assert (answer.status_code == 303) == (key == "upload")


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("m", b"no mask", 422),
        ("", b"x", 400),
        ("a/b", b"x", 400),
        ("m", b"", 400),
        ("..", b"x", 400),
    ],
)
async def test_an_upload_that_is_refused_says_why(site, visit, name, data, status):
    browser = await visit("admin")
    answer = await browser.upload("/masks", "m.bmt", data, name=name)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    check_page(answer)


async def test_an_upload_has_a_bound_before_it_is_read(site, visit):
    browser = await visit("admin")
    most = site.state.max_upload_bytes
    answer = await browser.upload("/masks", "m.bmt", b"x" * (most + 300_000), name="m")
    assert answer.status_code == 413
    answer = await browser.upload("/masks", "m.bmt", b"x" * (most + 1), name="m")
    assert answer.status_code == 413
    answer = await browser.send("/compare", prompt="x" * 600_000)
    assert answer.status_code == 413


async def test_side_by_side_without_scripts(site, visit):
    await publish(site)
    answering(site, HOSTILE)
    browser = await visit("admin")
    answer = await browser.send("/compare", models="tiny\r\nm\r\nmissing", prompt=HOSTILE)
    assert answer.status_code == 200
    check_page(answer)
    assert answer.text.count("<article") == 4  # one is the script's template
    shown = Elements(answer.text).text
    assert shown.count(HOSTILE) == 3
    assert "of m@" in shown
    assert "missing" in shown
    for wrong in (
        {"prompt": " "},
        {"models": ""},
        {"models": "a\nb\nc\nd\ne"},
        {"max_tokens": "x"},
        {"max_tokens": "1.5"},
        {"max_tokens": "9" * 5000},
        {"temperature": "nan"},
        {"temperature": "1e999"},
    ):
        fields = {"models": "tiny", "prompt": "hi", **wrong}
        assert (await browser.send("/compare", **fields)).status_code == 400


async def test_side_by_side_as_streams(site, visit):
    await publish(site)
    answering(site)
    browser = await visit("infer")
    fields = {"model": "m", "prompt": "hi", "max_tokens": "8"}
    answer = await browser.send("/compare", "/compare/stream", **fields)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line[:7] == "data: {"]
    assert "".join(e["choices"][0]["delta"]["content"] for e in events).startswith(
        "<b>hi</b> of m@"
    )
    answer = await browser.send("/compare", "/compare/stream", **{**fields, "model": "missing"})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
    # Whoever may not ask gets no answer here either.
    uploader = await visit("upload")
    answer = await uploader.send("/masks", "/compare/stream", **fields)
    assert answer.status_code == 403


async def stream_scope(browser):
    """ASGI scope and body of a form that asks `tiny` for a stream."""
    token = await browser.token("/compare")
    body = httpx2.QueryParams({"csrf": token, "model": "tiny", "prompt": "hi"})
    cookie = f"bmt_console={browser.client.cookies['bmt_console']}"
    headers = {"cookie": cookie, "content-type": "application/x-www-form-urlencoded"}
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"},
        **{"path": "/console/compare/stream", "raw_path": b"/console/compare/stream"},
        **{"query_string": b"", "scheme": "http", "server": ("test", 80), "client": ("1.1.1.1", 1)},
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
    return scope, str(body).encode()


async def test_a_stream_ends_when_the_browser_leaves(site, visit):
    hold = asyncio.Event()
    left = answering(site, hold=hold)
    browser = await visit("infer")
    scope, body = await stream_scope(browser)
    gone, sent = asyncio.Event(), []

    async def receive():
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body"):
            gone.set()

    await asyncio.wait_for(site.app(scope, receive, send), 5)
    assert left == ["tiny"]


async def test_limits_of_a_key_hold_in_the_console(site, visit):
    answering(site)
    browser = await visit("infer")
    site.replace(key_limiter=KeyLimiter(0, 0.001))
    fields = {"model": "tiny", "prompt": "hi"}
    assert (await browser.send("/compare", "/compare/stream", **fields)).status_code == 200
    answer = await browser.send("/compare", "/compare/stream", **fields)
    assert answer.status_code == 429


async def test_files_and_jobs(site, visit):
    browser = await visit("upload")
    assert "upload one first" in (await browser.get("/jobs")).text
    answer = await browser.upload(
        "/files", "a\\b <i>.jsonl", jsonl([supervised(), supervised("1+1?", "2")])
    )
    assert answer.headers["location"] == "/console/files?done=file"
    answer = await browser.upload("/files", "bad.jsonl", b'{"messages": 3}\n')
    assert answer.status_code == 400
    assert "row 1" in answer.text.lower() or "line 1" in answer.text.lower()
    await browser.upload("/files", "pairs.jsonl", jsonl([pair()]))
    async with site.client("upload") as client:
        found = {f["filename"]: f for f in (await client.get("/v1/files")).json()["data"]}
        rows, pairs = found["a\\b <i>.jsonl"], found["pairs.jsonl"]
        assert rows["rows"] == 2
    answer = await browser.send(
        "/jobs", training_file=rows["id"], method="supervised", n_epochs="x", suffix="mine"
    )
    assert answer.status_code == 400
    assert 'value="mine"' in answer.text
    answer = await browser.send("/jobs", training_file=pairs["id"], method="supervised")
    assert answer.status_code == 400
    answer = await browser.send("/jobs", training_file=pairs["id"], method="reinforcement")
    assert answer.status_code == 400
    answer = await browser.send(
        *("/jobs",),
        **{"training_file": rows["id"], "method": "supervised", "n_epochs": "3", "seed": "7"},
        suffix="mine",
    )
    path, _, done = answer.headers["location"].removeprefix("/console").partition("?")
    assert done == "done=created"
    page = await browser.get(path)
    check_page(page)
    assert "waits for a worker" in page.text
    job_id = path.rpartition("/")[2]
    async with site.client("upload") as client:
        job = (await client.get(f"/v1/fine_tuning/jobs/{job_id}")).json()
        assert job["seed"] == 7
        assert job["hyperparameters"]["n_epochs"] == 3
    worker = Worker(site)
    assert await worker.lease() == job_id
    await worker.report(1, 3, of=3)
    page = await browser.get(path)
    assert "<polyline" in page.text
    part = await browser.get(f"{path}?part=live")
    check_page(part)
    assert not part.text.lstrip().startswith("<!doctype")
    # Neither the job nor its file is another tenant's.
    other = await visit("other")
    for hidden in (path, f"{path}?part=live"):
        assert (await other.get(hidden)).status_code == 404
    assert (await other.send("/jobs", f"{path}/cancel")).status_code == 404
    assert "b <i>" not in html.unescape((await other.get("/files")).text)
    for what in ("pause", "resume", "cancel"):
        assert (await browser.send(path, f"{path}/{what}")).status_code == 303
    answer = await browser.send(path, f"{path}/pause")
    assert answer.status_code == 412
    assert (await browser.send(path, f"{path}/delete")).status_code == 400
    assert "data-live" not in (await browser.get(path)).text
    assert (await browser.send("/files", f"/files/{rows['id']}/delete")).status_code == 303
    assert rows["id"] not in (await browser.get("/files")).text


async def test_texts_of_strangers_are_text(site, visit):
    """Names, labels, events and errors: as text on each page, and nowhere as markup."""
    async with site.client("admin") as client:
        made = await client.post("/v1/keys", json={"scopes": ["infer"], "label": HOSTILE[:60]})
        assert made.status_code == 201, made.text
    file_id = await add_file(site, "admin", name=HOSTILE.replace('"', ""))
    browser = await visit("admin")
    answer = await browser.send("/jobs", training_file=file_id, method="supervised")
    job = answer.headers["location"].removeprefix("/console")
    worker = Worker(site)
    await worker.lease()
    await worker.report(1, 3, of=3, message=HOSTILE)
    wrong = await browser.send("/masks", "/masks/m/alias", alias=HOSTILE)
    missing = await browser.get(f"/masks/{HOSTILE.replace('/', '')}")
    pages = [await browser.get(path) for path in ("/keys", "/files", "/jobs", job)]
    for page in (*pages, wrong, missing):
        check_page(page)
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert "49" not in re.findall(r"onerror=alert\(2\)&gt;(\d+)", page.text)
    for page in pages:
        assert "<script>alert(1)" in Elements(page.text).text


async def test_words_of_an_address_are_no_messages(site, visit):
    browser = await visit("admin")
    for done in (HOSTILE, "your key was stolen", "uploaded'"):
        page = await browser.get("/masks", params={"done": done})
        assert 'class="message' not in page.text


async def test_keys_for_administrators(site, visit):
    browser = await visit("admin")
    answer = await browser.send("/keys", scopes=["infer", "upload"], label="ci", expires="30d")
    assert answer.status_code == 200
    secret = re.search(r"bmt_\w{42}", answer.text)
    assert secret is not None
    assert answer.headers["cache-control"] == "no-store"
    assert secret[0] not in (await browser.get("/keys")).text
    record = next(r for r in await site.state.keys.records() if r.label == "ci")
    assert set(record.scopes) == {"infer", "upload"}
    assert record.expires
    assert (await browser.send("/keys", label="none")).status_code == 400
    # No key makes one that may more, and none changes another tenant's.
    assert (await browser.send("/keys", scopes="operator")).status_code == 403
    other = await visit("other")
    assert record.key_id not in (await other.get("/keys")).text
    assert (await other.send("/keys", f"/keys/{record.key_id}/revoke")).status_code == 404
    assert (await browser.send("/keys", f"/keys/{record.key_id}/revoke")).status_code == 303
    assert record.key_id not in (await browser.get("/keys")).text


async def test_usage_of_the_tenant_and_of_all_for_the_operators_administrators(site, visit):
    await publish(site)
    for key in ("infer", "other"):
        await site.ask("tiny", key)
    await site.ask("m")
    browser = await visit("admin")
    own, every = await browser.get("/usage"), await browser.get("/usage?tenant=*")
    for page in (own, every):
        check_page(page)
        assert "<rect" in page.text
    assert ">2</dd>" in own.text
    assert ">3</dd>" in every.text
    assert 'data-label="Tenant">other<' in every.text
    other = await (await visit("other")).get("/usage?tenant=*")
    assert ">1</dd>" in other.text


def test_figures_of_the_metrics():
    found = read(text_string_to_metric_families(METRICS))
    mask = found.masks["m"]
    assert (mask.requests, mask.errors, mask.prompt, mask.completion) == (4, 1, 40, 12)
    assert mask.mean_first_token_ms == pytest.approx(50)
    assert mask.resident
    assert not found.masks["base"].resident
    assert found.sources["registry"].mean_ms == pytest.approx(5)
    assert found.resident_masks == 1
    assert found.capacity_bytes == 1_000_000
    # All workers have the same masks, and evict the same ones.
    assert found.evictions == 5


async def test_traffic_is_the_operators(site, visit):
    site.app.get("/metrics")(lambda: PlainTextResponse(METRICS))
    for key in ("admin", "metrics"):
        page = await (await visit(key)).get("/traffic")
        check_page(page)
        assert "resident" in page.text
        assert "50 ms" in page.text
    assert (await (await visit("other")).get("/traffic")).status_code == 403


def test_curves_have_a_bounded_number_of_points_and_no_figure_that_is_none():
    rows = [{"step": n, "train_loss": float(n), "note": "x"} for n in range(1, 5001)]
    rows.append({"step": 5001, "train_loss": float("nan")})
    rows.append({"step": 5002, "reward": 1.0})
    loss, reward = curves(rows)
    assert loss.name == "train_loss"
    assert len(loss.points.split()) <= MAX_POINTS
    assert (loss.first_step, loss.last_step, loss.last) == (1, 5000, 5000.0)
    assert reward.points
    assert curves([]) == []


async def test_pages_below_a_root_path(site, visit):
    browser = await visit("")
    site.app.root_path = "/llm"
    try:
        page = await browser.client.get("/llm/console/sign-in")
        assert 'href="/llm/console/static/console.css"' in page.text
        token = re.search(r'name="csrf" value="(\w+)"', page.text)[1]
        data = {"csrf": token, "key": site.keys["admin"]}
        answer = await browser.client.post("/llm/console/sign-in", data=data)
        assert answer.headers["location"] == "/llm/console"
        answer = await browser.client.get("/llm/console")
        assert answer.headers["location"] == "/llm/console/masks"
        page = await browser.client.get("/llm/console/masks")
        assert page.status_code == 200
        assert 'aria-current="page">Masks' in page.text
    finally:
        site.app.root_path = ""


async def test_static_files_are_there_without_a_session_and_no_others(visit):
    browser = await visit("")
    for name in ("console.css", "console.js", "icon.svg"):
        answer = await browser.get(f"/static/{name}")
        assert answer.status_code == 200
        check_page_headers = {k: v for k, v in HEADERS.items() if k != "Cache-Control"}
        assert all(answer.headers[k] == v for k, v in check_page_headers.items())
    assert (await browser.get("/static/page.py")).status_code == 404


async def test_files_arrive_in_the_servers_folder_and_a_full_disk_is_said(
    site, visit, monkeypatch, tmp_path
):
    """Nothing is written to the system's folder, which may be memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    browser = await visit("admin")
    data = jsonl([supervised()])
    answer = await browser.upload("/files", "rows.jsonl", data)
    assert answer.headers["location"] == "/console/files?done=file"
    mask = bmt_core.encode(make_mask())
    assert (await browser.upload("/masks", "m.bmt", mask, name="m")).status_code == 303
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) * 8, hard))
    try:
        # Found by a write, and by what the file's buffer still has at its end.
        for rows in (16, 10_000):
            answer = await browser.upload("/files", "rows.jsonl", data * rows)
            assert answer.status_code == 507
            assert "disk is full" in answer.text
            check_page(answer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_numbers_of_a_job_that_are_none_are_named(site, visit):
    file_id = await add_file(site)
    browser = await visit("upload")
    for name in ("seed", "n_epochs", "learning_rate_multiplier", "beta"):
        for text in ("x", "nan", "inf", "9" * 5000):
            fields = {"training_file": file_id, "method": "dpo", name: text}
            answer = await browser.send("/jobs", **fields)
            assert answer.status_code == 400, (name, text[:8])
            assert name.replace("_", " ") in Elements(answer.text).text
    async with site.client("upload") as client:
        assert (await client.get("/v1/fine_tuning/jobs")).json()["data"] == []


async def test_results_of_a_job_are_no_rows_for_another(site, visit):
    await add_file(site)
    results = new_file_id()
    record = FileRecord(
        **{"id": results, "tenant": "default", "filename": "step_metrics.csv", "bytes": 4},
        **{"created_at": 1, "sha256": hashlib.sha256(b"step").hexdigest(), "rows": 0},
        **{"form": None, "purpose": RESULTS},
    )
    await site.state.files.add(record, io.BytesIO(b"step"))
    browser = await visit("upload")
    listed = (await browser.get("/files")).text
    assert results in listed
    assert ">None<" not in listed
    page = (await browser.get("/jobs")).text
    assert "train.jsonl" in page
    assert results not in page


async def test_the_version_that_is_served_is_not_called_the_newest(site, visit):
    await publish(site, "m", (0, 1))
    async with site.client("admin") as client:
        _, old = (await client.get("/v1/masks/m/versions")).json()["data"]
        body = {"digest": old["digest"]}
        assert (await client.put("/v1/masks/m/aliases/latest", json=body)).status_code == 200
    browser = await visit("infer")
    page = Elements((await browser.get("/masks/m")).text).text
    assert f"Latest version {old['model']}" in page
    assert "ewest" not in page
    assert "ewest" not in (await browser.get("/masks")).text


async def test_a_limit_says_when_to_come_back(site, visit):
    browser = await visit("upload")
    uploads = UploadLimiter(1 << 20)
    site.replace(uploads=uploads)
    with ExitStack() as open_uploads:
        record = next(r for r in await site.state.keys.records() if r.label == "upload")
        for _ in range(64):
            open_uploads.enter_context(uploads.receive(record.key_id))
        answer = await browser.upload("/masks", "m.bmt", b"x", name="m")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_stream_that_no_browser_ever_reads_ends(site, visit):
    """The browser is gone before the head is written, so nothing of the body is asked for."""
    left = answering(site, hold=asyncio.Event())
    scope, body = await stream_scope(await visit("infer"))
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        await asyncio.Event().wait()  # as a transport that is full

    await asyncio.wait_for(site.app(scope, receive, send), 5)
    assert left == ["tiny"]
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "bmt-console-stream"]


async def test_an_answer_that_breaks_off_is_not_a_whole_one(site, visit):
    """The connection breaks off too, as the API's own would."""
    answering(site, breaks=True)
    scope, body = await stream_scope(await visit("infer"))
    messages, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.Future()

    async def send(message):
        sent.append(message)

    with pytest.raises(Exception, match="internal error"):
        await asyncio.wait_for(site.app(scope, receive, send), 5)
    assert sent[0]["status"] == 200
    assert sent[-1]["more_body"]
