"""Open WebUI with `examples/neighbors/open_webui.env`, in headless Chromium, on a real server.

Pictures of the page stay in `pictures`, next to the environments (`tests/support/scenarios`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bmt_client import BmtClient

from tests.support.http.ports import free_port
from tests.support.scenarios.neighbors import (
    EXAMPLES,
    KEPT,
    PROMPT,
    TOKENS,
    Neighborhood,
    python_of,
    running,
    settings_in,
)

pytestmark = [pytest.mark.operate, pytest.mark.timeout(2400)]
playwright = pytest.importorskip("playwright.sync_api")

SETTINGS = settings_in(EXAMPLES / "open_webui.env")
PICTURES = KEPT / "pictures"


@pytest.fixture(scope="module")
def webui(neighborhood: Neighborhood, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("webui")
    port = free_port()
    env = {
        **SETTINGS,
        "OPENAI_API_BASE_URL": f"{neighborhood.server.url}/v1",
        "OPENAI_API_KEY": neighborhood.key,
        # So that the page's answers can be compared.
        "DEFAULT_MODEL_PARAMS": json.dumps({"temperature": 0, "max_tokens": TOKENS}),
        # A page without accounts, on a machine without a network.
        **{"WEBUI_AUTH": "false", "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1"},
        **{"DATA_DIR": str(folder), "HOME": str(folder), "WEBUI_SECRET_KEY": "neighbors"},
    }
    program = python_of("webui").with_name("open-webui")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", folder / "log", env, folder):
        yield url


@pytest.fixture(scope="module")
def page(webui: str) -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        opened = browser.new_page(base_url=webui, viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(60_000)
        opened.goto("/")
        opened.get_by_role("button", name="Okay, Let's Go!").click()
        yield opened
        browser.close()


def choose(page: Any, model: str, picture: str = "") -> None:
    """A new chat with the model that the menu has under this name."""
    page.goto("/")
    page.locator("#model-selector-model-button").click()
    entry = page.locator(f'[role=option][data-value="{model}"]')
    entry.wait_for()
    if picture:
        page.screenshot(path=PICTURES / picture)
    entry.click()


def ask(page: Any, picture: str) -> tuple[str, int]:
    """The whole answer, and how many different lengths of it the page showed before."""
    page.locator("#chat-input").click()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    shown = page.locator(".chat-assistant")
    # While an answer streams, a button that stops it is in this one's place.
    idle = page.get_by_role("button", name="Voice mode")
    lengths: set[int] = set()
    text, ended, deadline = "", False, time.monotonic() + 180
    while not ended and time.monotonic() < deadline:
        ended = bool(text) and idle.is_visible()
        text = shown.last.inner_text() if shown.count() else ""
        lengths.add(len(text))
        if len(lengths) == 6:
            page.screenshot(path=PICTURES / f"{picture}-streams.png")
        time.sleep(0.1)
    assert ended, text
    page.screenshot(path=PICTURES / f"{picture}.png")
    return text, len(lengths)


def words(text: str) -> list[str]:
    """Without the marks and numbers of Markdown's lists, which the page lays out."""
    return "".join(c if c.isalpha() else " " for c in text).split()


def test_a_mask_is_chosen_and_streams(page, neighborhood):
    page.locator("#model-selector-model-button").click()
    page.locator("[role=option]").first.wait_for()
    listed = page.locator("[role=option]")
    names = [listed.nth(i).get_attribute("data-value") for i in range(listed.count())]
    assert names == ["smol", "reverse", "reverse:prod"]
    page.keyboard.press("Escape")

    expected = {model: words(neighborhood.answer(model)) for model in ("smol", "reverse")}
    assert expected["smol"] != expected["reverse"]
    for model, picture in (("reverse", "mask"), ("smol", "base"), ("reverse:prod", "alias")):
        before = neighborhood.requests("reverse")
        choose(page, model, f"{picture}-menu.png")
        text, lengths = ask(page, picture)
        assert words(text) == expected[model.partition(":")[0]], text
        assert lengths > 5, "as it is generated"
        # No more requests than the one that was asked: no titles, tags or questions.
        asked = neighborhood.requests("reverse") - before
        assert asked == (0 if model == "smol" else 1)


def test_the_page_says_that_a_mask_is_gone(page, neighborhood, smol: Path):
    server = neighborhood.server
    with BmtClient(server.url, server.key) as client:
        client.set_alias("reverse", "old", neighborhood.version)
    page.reload()
    choose(page, "reverse:old")
    with BmtClient(server.url, server.key) as client:
        client.delete_alias("reverse", "old")
    text, _ = ask(page, "gone")
    assert "reverse:old" in text, text
