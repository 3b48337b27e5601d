"""Markdown of the site's pages for programs."""

from __future__ import annotations

import pytest

from tools.site.pages import first_sentence, without_comments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "It is 0.96 <!-- figure: a#b --> of it, 5 <!-- figure: c -->; more.",
            "It is 0.96 of it, 5; more.",
        ),
        ("- 5 ms <!-- figure: a#b -->\n- next\n", "- 5 ms\n- next\n"),
        ("One <!-- figure: a#b -->\n\nTwo", "One\n\nTwo"),
        ("<!-- not run: why -->\n```bash\nls\n```", "```bash\nls\n```"),
        ("<!-- a --> text\n<!-- b -->\n", " text\n"),
        ("| 5 <!-- figure: a;\nb --> |", "| 5 |"),
    ],
)
def test_comments_go_and_sentences_stay(text, expected):
    assert without_comments(text) == expected


def test_a_page_s_first_sentence():
    page = "# Title\n\n<!-- written by a program -->\n\nIt takes 5 ms <!-- figure: a#b -->. More.\n"
    assert first_sentence(page) == "It takes 5 ms."
