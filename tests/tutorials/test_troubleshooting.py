"""Every message of the page on trouble is one that a program prints: a renamed one fails here."""

from __future__ import annotations

import pytest

from tests.support.pages.blocks import ROOT
from tests.support.pages.messages import missing, quoted

PAGE = ROOT / "docs" / "tutorials" / "troubleshooting.md"
MESSAGES = quoted(PAGE)


def test_the_page_quotes_messages():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(MESSAGES) >= 30
    assert len(rows) - len(MESSAGES) == 2, "two rows are messages of a shell"


@pytest.mark.parametrize("message", MESSAGES)
def test_a_program_prints_it(message):
    assert missing(message) == []


@pytest.mark.parametrize(
    "message",
    [
        "task … is no built-in task",
        "… exists already; name another output, or give --overwrite",
        "no API key; send a Bearer header",
        "the mask sets … of … weights to nothing (…); at most … are allowed",
    ],
)
def test_a_message_that_none_prints_is_found(message):
    assert missing(message)
