"""A browser's page on another origin: it chats, streams, reads errors, and publishes a mask.

Headless Chromium (Debian's package `chromium`) driven by Playwright, which brings none of its own.
The server is below a path, and takes one origin.
"""

from __future__ import annotations

import base64
import http.server
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient

from tests.support.http.ports import free_port
from tests.support.masks import random_mask_of
from tests.support.requests.open_webui import PAGE, replay
from tests.support.served import Served

pytestmark = pytest.mark.operate
playwright = pytest.importorskip("playwright.sync_api")

ASK = """
async ([url, options]) => {
  try {
    const answer = await fetch(url, options);
    const headers = Object.fromEntries(answer.headers);
    return {status: answer.status, headers, text: await answer.text()};
  } catch (error) {
    return {status: 0, text: String(error)};
  }
}
"""
STREAM = """
async ([url, options]) => {
  const answer = await fetch(url, options);
  const reader = answer.body.getReader(), decoder = new TextDecoder(), parts = [];
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(decoder.decode(value, {stream: true}));
  }
  return {status: answer.status, type: answer.headers.get("content-type"), parts};
}
"""
PUT = """
async ([url, key, encoded]) => {
  const body = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const answer = await fetch(url, {method: "PUT", body, headers: {
    "Authorization": `Bearer ${key}`, "Content-Type": "application/octet-stream",
    "If-None-Match": "*"}});
  return {status: answer.status, tag: answer.headers.get("etag"), text: await answer.text()};
}
"""


class OtherOrigin(http.server.BaseHTTPRequestHandler):
    """An empty page of another origin."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>console</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def origin():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherOrigin)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture(scope="module")
def server(smol: Path, origin: str, tmp_path_factory: pytest.TempPathFactory):
    started = Served(
        smol,
        tmp_path_factory.mktemp("browser"),
        *("--enforce-eager", "--max-num-seqs", "8", "--root-path", "/masks"),
        *("--allowed-origins", json.dumps([origin, PAGE]), "--key-concurrency", "1"),
        port=free_port(),
    )
    yield started
    assert started.stop() in (0, -15)


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, origin):
    opened = browser.new_page()
    opened.goto(origin)
    yield opened
    opened.close()


def asked(key: str, body: object = None) -> dict:
    """Options of `fetch` for a request with a key and a JSON body."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if body is None:
        return {"headers": headers}
    return {"method": "POST", "headers": headers, "body": json.dumps(body)}


@pytest.mark.found
def test_a_page_of_another_origin(server, page, smol):
    base = f"{server.url}/masks/v1"
    mask = base64.b64encode(bmt_core.encode(random_mask_of(smol, 5, sparsity=0.02))).decode()
    put = page.evaluate(PUT, [f"{base}/masks/reverse", server.key, mask])
    assert put["status"] == 201, put["text"]
    assert put["tag"] == f'"{json.loads(put["text"])["digest"]}"'
    version = json.loads(put["text"])["model"]

    listed = page.evaluate(ASK, [f"{base}/models", asked(server.key)])
    assert [m["id"] for m in json.loads(listed["text"])["data"]] == ["smol", "reverse"]
    assert listed["headers"]["x-request-id"]
    chat = {"model": "reverse", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24}
    answer = page.evaluate(ASK, [f"{base}/chat/completions", asked(server.key, chat)])
    assert answer["status"] == 200, answer["text"]
    assert json.loads(answer["text"])["model"] == version

    streamed = page.evaluate(
        STREAM, [f"{base}/chat/completions", asked(server.key, {**chat, "stream": True})]
    )
    assert streamed["status"] == 200
    assert streamed["type"].startswith("text/event-stream")
    assert len(streamed["parts"]) > 5, "as it is generated"
    assert "".join(streamed["parts"]).endswith("data: [DONE]\n\n")


@pytest.mark.found
def test_a_page_reads_every_error(server, page):
    base = f"{server.url}/masks/v1"
    chat = {"model": "smol", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    for path, options, status, code in (
        ("/chat/completions", asked("", chat), 401, "invalid_api_key"),
        ("/models", asked("bmt_wrong"), 401, "invalid_api_key"),
        ("/chat/completions", asked(server.key, {**chat, "model": "x"}), 404, "model_not_found"),
        ("/chat/completions", asked(server.key, {**chat, "stop": 5}), 400, None),
        ("/chat/completions", asked(server.key, {**chat, "model": None}), 400, "model_missing"),
        ("/masks/Acme", {**asked(server.key), "method": "DELETE"}, 400, "name_invalid"),
        ("/masks/none", asked(server.key), 404, None),
        ("/models", {"headers": {**asked(server.key)["headers"], "X-A": "a" * 40000}}, 431, None),
    ):
        answer = page.evaluate(ASK, [base + path, options])
        assert answer["status"] == status, (path, answer)
        error = json.loads(answer["text"])["error"]
        assert error["message"]
        assert code in (None, error["code"])
    long = {**chat, "max_tokens": 400, "ignore_eos": True}
    options = asked(server.key, long)
    first = page.evaluate_handle(
        "([url, options]) => ({answer: fetch(url, options)})",
        [f"{base}/chat/completions", options],
    )
    for _ in range(50):
        second = page.evaluate(ASK, [f"{base}/chat/completions", asked(server.key, chat)])
        if second["status"] == 429:
            break
    assert second["status"] == 429
    assert second["headers"]["retry-after"] == "1"
    assert first.evaluate("async (held) => (await held.answer).status") == 200


@pytest.mark.found
def test_a_page_of_an_origin_that_is_not_allowed_reads_nothing(server, browser, origin):
    page = browser.new_page()
    page.goto(origin.replace("127.0.0.1", "localhost"))
    for path in ("/v1/models", "/v1/chat/completions"):
        for key in ("", server.key):
            answer = page.evaluate(ASK, [f"{server.url}/masks{path}", asked(key)])
            assert answer["status"] == 0
            assert "Failed to fetch" in answer["text"]
    page.close()


@pytest.mark.found
def test_open_webui_below_a_path(server, smol):
    with BmtClient(f"{server.url}/masks", server.key) as client:
        mask = bmt_core.encode(random_mask_of(smol, 6, sparsity=0.02))
        version = client.upload(mask, name="webui").model
    for model, answered in (("smol", "smol"), ("webui", version), ("smol:webui", version)):
        replay(f"{server.url}/masks", server.key, model, answered, PAGE)


@pytest.mark.found
def test_an_idle_connection_stays_open(server):
    """For longer than vLLM's 5 s."""
    request = b"GET /masks/livez HTTP/1.1\r\nHost: t\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for wait_s in (0, 8):
            time.sleep(wait_s)
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                part = connection.recv(4096)
                assert part, "closed"
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_the_server_is_below_its_path_and_without_it(server):
    for prefix in ("", "/masks", "//masks"):
        assert httpx2.get(f"{server.url}{prefix}/health").status_code == 200
        assert httpx2.get(f"{server.url}{prefix}/v1/models").status_code == 401
    assert httpx2.get(f"{server.url}/masks/docs", headers=server.headers).status_code == 404
