"""The console in headless Chromium: a visitor's whole way, on three widths, light and dark.

Debian's package `chromium`, driven by Playwright, which brings none of its own; axe-core (MPL-2.0,
in the package `axe-playwright-python`) finds what a screen reader or a reader with low vision
stumbles over. The replica has no engine: its answers come from a stub, and the job's steps from
requests as a worker sends them. BMT_CONSOLE_PICTURES names a folder for pictures of all pages.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bmt_core
import pytest
import uvicorn
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from fastapi.responses import PlainTextResponse

from tests.support.http.console import HOSTILE, METRICS, Worker, answering
from tests.support.replica import Api, make_mask, replica
from tests.support.requests.rows import jsonl, supervised
from tests.support.served import Valkey

pytestmark = pytest.mark.operate
playwright = pytest.importorskip("playwright.async_api")
axe = pytest.importorskip("axe_playwright_python.async_playwright")

WIDTHS = (390, 768, 1280)
PAGES = ("masks", "masks/math", "compare", "jobs", "files", "traffic", "usage", "keys")
# Elements that reach beyond the page to the right, and scroll in no box of their own.
CUT = """
() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = (e) => {
    for (; e && e !== document.body; e = e.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && box.left >= 0 && !scrolls(e))
      found.push(`${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 60)}`);
  }
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  return found.slice(0, 5);
}
"""


class Site:
    """A replica on a port, and one browser."""

    def __init__(self, api: Api, url: str, browser: Any) -> None:
        self.api, self.url, self.browser = api, url, browser

    async def page(self, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        """A page of its own visitor, whose errors and refusals of the policy fail the test."""
        view = {"width": width, "height": 900}
        context = await self.browser.new_context(viewport=view, color_scheme=scheme, **options)
        page = await context.new_page()
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith(self.url) else page.faults.append(f"asks {r.url}"),
        )
        return page

    async def sign_in(self, page: Any, key: str = "admin") -> None:
        await page.goto(f"{self.url}/console")
        await page.get_by_label("API key").fill(self.api.keys[key])
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Masks").wait_for()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs Debian's package chromium")
    (tmp_path / "valkey").mkdir()
    store = Valkey(tmp_path / "valkey")
    store.start()
    try:
        async with _replica(store.url, tmp_path) as (api, url), playwright.async_playwright() as p:
            browser = await p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            yield Site(api, url, browser)
            await browser.close()
    finally:
        store.close()


@asynccontextmanager
async def _replica(registry: str, folder: Path) -> AsyncIterator[tuple[Api, str]]:
    connection = RegistryConnection(registry)
    keys = {}
    for name, scopes in (("admin", ("infer", "upload", "admin")), ("train", ("train",))):
        made = await ApiKeyStore(connection).create(scopes, label=f"{name} of the console")
        assert made is not None
        keys[name] = made[0]
    await connection.close()
    files = (folder / "files").as_uri()
    async with replica(registry, folder / "cache", keys, files_url=files) as api:
        api.app.get("/metrics")(lambda: PlainTextResponse(METRICS))
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                yield api, f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                server.should_exit = True
                await task


async def test_sign_in_upload_ask_train_watch_and_roll_back(site, tmp_path):
    """The whole way, by labels and names as a visitor finds them."""
    left = answering(site.api, f"Water boils at 100 degrees {HOSTILE}", pause_s=0.02)
    for seed in (1, 2):
        (tmp_path / f"{seed}.bmt").write_bytes(bmt_core.encode(make_mask(seed)))
    (tmp_path / "rows.jsonl").write_bytes(jsonl([supervised()] * 3))
    page = await site.page()
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await site.sign_in(page)

    for seed in (1, 2):
        await page.goto(f"{site.url}/console/masks")
        if not await page.get_by_label("File").is_visible():
            await page.get_by_text("Upload a mask").click()
        await page.get_by_label("Name").fill("math")
        await page.get_by_label("File").set_input_files(tmp_path / f"{seed}.bmt")
        await page.get_by_role("button", name="Upload", exact=True).click()
        await page.get_by_text("The mask is published.").wait_for()

    await page.get_by_role("link", name="Ask side by side").click()
    await page.get_by_label("Prompt").fill(HOSTILE)
    await page.get_by_role("button", name="Ask").click()
    answers = page.locator("#answers article")
    await page.get_by_text("whole after").nth(1).wait_for()
    texts = [await answers.nth(at).inner_text() for at in range(2)]
    assert [text.partition("\n")[0] for text in texts] == ["tiny", "math"]
    assert all(HOSTILE in text for text in texts)
    assert len(left) == 2

    await page.get_by_role("link", name="Files").click()
    await page.get_by_label("Upload a file").set_input_files(tmp_path / "rows.jsonl")
    await page.get_by_role("button", name="Upload", exact=True).click()
    await page.get_by_text("The file is checked and kept.").wait_for()
    await page.get_by_role("link", name="Jobs").click()
    await page.get_by_label("Epochs").fill("2")
    await page.get_by_role("button", name="Start").click()
    await page.get_by_text("The job waits for a worker.").wait_for()

    worker = Worker(site.api)
    await worker.lease()
    await worker.report(1, 10, of=20, message=HOSTILE)
    # Without a reload: the page follows the job.
    await page.locator("h1").get_by_text("running").wait_for()
    curve = page.get_by_role("img", name="Loss")
    assert "to step 10" in str(await curve.get_attribute("aria-label")) or "to 10" in str(
        await curve.get_attribute("aria-label")
    )
    assert HOSTILE in await page.locator(".log").inner_text()
    await page.get_by_role("button", name="Pause").focus()
    await worker.report(11, 20, of=20)
    await page.get_by_role("img", name="to 20").first.wait_for()
    # Whoever works by keyboard keeps the place.
    assert await page.evaluate("document.activeElement.id") == "pause"
    await worker.finish(make_mask(3))
    await page.get_by_role("link", name="The mask").wait_for()
    await page.get_by_role("link", name="The mask").click()
    assert "ft-" in await page.locator("h1").inner_text()

    await page.goto(f"{site.url}/console/masks/math")
    rows = page.locator("tbody tr")
    assert "latest" in await rows.nth(0).inner_text()
    await page.get_by_role("button", name="Roll back to version").click()
    await page.get_by_text("The mask is rolled back").wait_for()
    assert "latest" in await rows.nth(1).inner_text()
    assert (await site.api.ask("math")).json()["model"].startswith("math@")

    cookies = await page.context.cookies()
    assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Strict")]
    assert await page.evaluate("document.cookie") == ""
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_label("API key").wait_for()
    assert page.faults == []


async def test_what_is_not_asked_or_not_whole_is_said(site):
    """More models than the console asks, and an answer whose end did not come."""
    page = await site.page()
    await site.sign_in(page)
    await page.goto(f"{site.url}/console/compare")
    event = 'data: {"choices": [{"delta": {"content": "Half an"}}]}\n\n'

    async def cut(route):
        await route.fulfill(body=event, content_type="text/event-stream")

    await page.route("**/compare/stream", cut)
    await page.get_by_label("Prompt").fill("hi")
    await page.get_by_label("Models").fill("a\nb\nc\nd\ne")
    await page.get_by_role("button", name="Ask").click()
    said = await page.get_by_label("Models").evaluate("field => field.validationMessage")
    assert said == "name 1 to 4 models, one a line"
    assert await page.locator("#answers article").count() == 0
    await page.get_by_label("Models").fill("tiny")
    await page.get_by_role("button", name="Ask").click()
    await page.get_by_text("the answer was cut off").wait_for(timeout=10_000)
    assert page.faults == []


async def fill(site: Site) -> str:
    """Something to see on each page. Returns the path of a job."""
    answering(site.api)
    for seed in (1, 2, 3):
        assert (await site.api.put("math?alias=prod", make_mask(seed))).status_code == 201
    await site.api.put("a-mask-with-a-name-of-many-words-and-letters.v2", make_mask(4))
    for model in ("tiny", "math", "math"):
        await site.api.ask(model)
    async with site.api.client() as client:
        versions = (await client.get("/v1/masks/math/versions")).json()["data"]
        body: dict[str, Any] = {"digest": versions[0]["digest"]}
        body["canary"] = {"digest": versions[1]["digest"], "percent": 10}
        await client.put("/v1/masks/math/aliases/prod", json=body)
        file = {"file": ("questions-of-the-first-week.jsonl", jsonl([supervised()] * 3))}
        data = {"purpose": "fine-tune"}
        made = (await client.post("/v1/files", data=data, files=file)).json()
        body = {"model": "tiny", "training_file": made["id"], "suffix": "support"}
        jobs = [(await client.post("/v1/fine_tuning/jobs", json=body)).json() for _ in range(3)]
        await client.post(f"/v1/fine_tuning/jobs/{jobs[2]['id']}/cancel")
    worker = Worker(site.api)
    job = await worker.lease()
    await worker.report(1, 120, of=200)
    return f"jobs/{job}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_every_page_is_whole_and_accessible(site, width, scheme):
    """No serious finding of axe, nothing cut at the right, nothing asked of another host."""
    job = await fill(site)
    page, findings = await site.page(width, scheme), []
    for name in ("sign-in", *PAGES, job):
        if name == "masks":
            await site.sign_in(page)
        await page.goto(f"{site.url}/console/{name}")
        if name == "compare":
            await page.get_by_label("Models").fill("tiny\nmath:prod")
            await page.get_by_label("Prompt").fill("At how many degrees does water boil?")
            await page.get_by_role("button", name="Ask").click()
            await page.get_by_text("whole after").nth(1).wait_for()
        shown = name.partition("/")[0] + ("-one" if "/" in name else "")
        findings += [f"{shown}: cut: {cut}" for cut in await page.evaluate(CUT)]
        for one in (await axe.Axe().run(page)).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                nodes = [node["html"][:100] for node in one["nodes"][:3]]
                findings.append(f"{shown}: {one['id']}: {nodes}")
        if pictures := os.environ.get("BMT_CONSOLE_PICTURES"):
            to = Path(pictures) / f"{shown}.{width}.{scheme}.png"
            await page.screenshot(path=to, full_page=True)
    assert not findings, "\n".join(findings)
    assert page.faults == []


async def test_every_page_works_by_keyboard_and_without_scripts(site):
    """The focus reaches all links and fields, in view; forms work where no script runs."""
    await fill(site)
    page = await site.page(java_script_enabled=False)
    await site.sign_in(page)
    await page.goto(f"{site.url}/console/compare?model=math")
    await page.get_by_label("Prompt").fill("hi")
    await page.get_by_role("button", name="Ask").click()
    assert await page.locator("#answers article").count() == 2
    await page.goto(f"{site.url}/console/masks/math")
    await page.get_by_role("button", name="Roll back to version").first.click()
    await page.get_by_text("The mask is rolled back").wait_for()

    page = await site.page()
    await site.sign_in(page)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = []
    for _ in range(12):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.textContent.trim()"))
    for place in ("Masks", "Side by side", "Jobs", "Sign out", "Upload a mask", "math"):
        assert place in reached, (place, reached)
