"""The built documentation site in headless Chromium: nothing cut, accessible, readable offline.

Each page at desktop and phone width, light and dark. axe-core (MPL-2.0, in the package
`axe-playwright-python`) finds what a screen reader or a reader with low vision stumbles over.
BMT_SITE_PICTURES names a folder for pictures of all pages.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.operate
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ROOT = Path(__file__).resolve().parents[3]
WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")
# Elements that reach beyond the page to the right, and scroll in no box of their own.
CUT = """
() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = (e) => {
    for (; e && e !== document.body; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (["auto", "scroll"].includes(style.overflowX)) return true;
      if (style.position === "fixed") return true;
    }
    return false;
  };
  for (const e of document.querySelectorAll(".md-content *")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(e))
      found.push(`${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
  }
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  return found.slice(0, 5);
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built as `make docs` does, and its address on loopback."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Files without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs Debian's package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def addresses(site) -> list[str]:
    folder, url = site
    pages = (p.parent.relative_to(folder).as_posix() for p in folder.rglob("index.html"))
    return [f"{url}/" if page == "." else f"{url}/{page}/" for page in sorted(pages)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole_and_accessible(site, browser, width, scheme):
    """No serious finding of axe, nothing cut at the right, nothing asked of another host."""
    view = {"width": WIDTHS[width], "height": 900}
    context = browser.new_context(viewport=view, color_scheme=scheme)
    page, asked, findings = context.new_page(), set(), []
    page.on("request", lambda request: asked.add(request.url))
    pictures = os.environ.get("BMT_SITE_PICTURES")
    for address in addresses(site):
        page.goto(address)
        name = address.removeprefix(site[1]).strip("/") or "index"
        findings += [f"{name}: cut: {cut}" for cut in page.evaluate(CUT)]
        for one in axe.Axe().run(page).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                nodes = [node["html"][:100] for node in one["nodes"][:3]]
                findings.append(f"{name}: {one['id']}: {nodes}")
        if pictures:
            to = Path(pictures) / f"{name.replace('/', '-')}.{width}.{scheme}.png"
            page.screenshot(path=to, full_page=True)
    context.close()
    kinds = Counter(finding.split(": ")[1] for finding in findings)
    assert not findings, f"{dict(kinds)}\n" + "\n".join(findings[:40])
    assert not {url for url in asked if not url.startswith((site[1], "data:", "blob:"))}


def test_search_works_without_a_network(site, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.route("**/*", lambda r: r.continue_() if r.request.url.startswith(site[1]) else r.abort())
    page.goto(site[1] + "/")
    page.get_by_role("textbox", name="Search").click()
    page.get_by_role("textbox", name="Search").press_sequentially("fingerprint")
    page.locator(".md-search-result__item").first.wait_for(timeout=90_000)
    assert "fingerprint" in page.locator(".md-search-result__list").inner_text().lower()
    page.close()
