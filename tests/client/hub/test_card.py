"""The model card: facts of the mask, and metadata of others that stays text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import bmt_core
import pytest
import yaml
from bmt_client.hub.card import is_untouched, make_card
from bmt_client.hub.places import HubPlace
from markdown_it import MarkdownIt

from tests.support.masks import BASE, SCORE, make_mask, random_mask

PLACE = HubPlace("acme/math", None, "math.bmt")
GRPO = {**SCORE, "mean": 0.71, "mean_interval95": [0.68, 0.74]}
HOSTILE = [
    "a | b || c",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</code></td></table><h1>owned</h1>",
    "--> <!-- x",
    "[click](https://evil.example) ![i](//evil.example/x.png) <https://evil.example>",
    "https://evil.example www.evil.example me@evil.example",
    "`code` **bold** _em_ __init__ ~~s~~ # head",
    "line\n\n# head\n---\n```\nfence",
    "\ttab\r\nbase_model: evil/model\n---\n",
    "&lt;b&gt; &#124; &amp;",
    "\\| \\` \\\\",
    "bidi \u202e evil \x1b[31m \x00 \u2028 \u200b",
    "$x$ $$y$$ \\(z\\) :smile: @user #1",
    "é ü 漢字 😀",
    "x" * 5000,
]
TAGS = {
    *("h1", "h2", "p", "a", "table", "thead", "tbody", "tr", "th", "td", "code", "strong"),
    *("ul", "li", "pre"),
}


class Page(HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def card(mask: bmt_core.Mask, **options: Any) -> tuple[dict[str, Any], Page]:
    """Front matter and page of a mask's card."""
    made = make_card(mask, bmt_core.encode(mask), PLACE, **options)
    assert is_untouched(made)
    _, front, body = made.split("---\n", 2)
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return yaml.safe_load(front), Page(renderer.render(body))


def of_base(name: str, **metadata: Any) -> bmt_core.Mask:
    base = bmt_core.Base(name, "ab" * 32)
    return random_mask(
        {"model.layers.0.mlp.gate_proj.weight": (8, 8)}, zeros=3, base=base, **metadata
    )


def test_the_front_matter():
    front, page = card(of_base("org/base-1", method="sft"))
    assert front["base_model"] == "org/base-1"
    assert front["base_model_relation"] == "adapter"
    assert front["library_name"] == "bmt-adapters"
    assert {"bmt", "sft"} <= set(front["tags"])
    assert "https://huggingface.co/org/base-1" in page.links


@pytest.mark.parametrize(
    "name",
    [
        *("tiny", "org/a b", "a/b/c", "../x", "o/x\nlicense: mit", ""),
        *("org/x.", "org/x-", "org/x.git", "org/a--b", "org/a@b", "org/x/", "datasets/x"),
    ],
)
def test_a_base_that_is_no_repository_is_not_named_as_one(name):
    front, page = card(of_base(name))
    assert not {"base_model", "base_model_relation", "license"} & set(front)
    front, page = card(of_base(name), base_model="org/base")
    assert front["base_model"] == "org/base"


def test_the_facts_of_a_mask():
    mask = make_mask(0, method="sft", scores={"mask": SCORE, "base": {**SCORE, "total": 9}})
    _, page = card(mask)
    for fact in (
        mask.digest,
        BASE.fingerprint,
        "80",
        "91.2%",
        "88.1% to 93.6%",
        "400",
        "hf://acme",
    ):
        assert fact in page.text
    assert page.text.index("the base, without") < page.text.index("this mask")


def test_rewards_stand_with_their_interval():
    _, page = card(make_mask(0, method="grpo", scores={"mask": GRPO}))
    assert "0.68 to 0.74" in page.text
    assert "mean reward" in page.text


@pytest.mark.parametrize(
    ("method", "mean", "share"),
    [("dpo", "margin", "chosen answer likelier"), ("kto", "gain", "answers moved as labeled")],
)
def test_means_of_preferences_stand_with_their_interval(method, mean, share):
    score = {**SCORE, mean: 12.5, f"{mean}_interval95": [11.5, 13.25]}
    _, page = card(make_mask(0, method=method, scores={"mask": score}))
    for words in (f"{mean} in nats", "12.5", "11.5 to 13.25", share, "91.2%"):
        assert words in page.text
    assert "exact match" not in page.text


@pytest.mark.parametrize(
    "scores",
    [
        None,
        [],
        "high",
        {"mask": 1},
        {"mask": {}},
        {"mask": {**SCORE, "accuracy": "0.9"}},
        {"mask": {**SCORE, "accuracy": 7}},
        {"mask": {**SCORE, "accuracy": True}},
        {"mask": {**SCORE, "total": 0}},
        {"mask": {**SCORE, "total": 10**400}},
        {"mask": {**SCORE, "interval95": [0.9, 0.1]}},
        {"mask": {**SCORE, "interval95": [0.9]}},
        {"mask": {**SCORE, "interval95": None}},
    ],
)
def test_what_is_no_score_is_not_shown(scores):
    _, page = card(make_mask(0, scores=scores))
    assert "91.2%" not in page.text
    assert "no scores" in page.text


def test_a_mask_without_metadata_has_a_card():
    _, page = card(make_mask(0))
    assert "does not say" in page.text


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_others_stays_text(words):
    mask = make_mask(
        0,
        method=words,
        dataset=words,
        scores={words: SCORE},
        config={words: words, "system": [words], words[:40] + "x": {"a": words}},
        versions={words: words},
        warnings=[words],
    )
    mask = bmt_core.Mask(bmt_core.Base(words[:200], "ab" * 32), mask.tensors, mask.metadata)
    front, page = card(mask)
    plain, plain_page = card(of_base("tiny", method="sft"))
    assert set(front) == set(plain)
    assert front["tags"] == ["bit-mask", "bmt"]
    assert set(page.tags) <= TAGS
    assert set(page.links) == set(plain_page.links)
    assert len(page.comments) == 1
    # The words are there, but for what a line cannot hold.
    line = "".join(
        c if c.isprintable() else " " if c in "\n\t\r" else f"\\u{ord(c):04x}" for c in words[:150]
    )
    assert page.text.count(line.strip()) >= 3


def test_an_edit_is_noticed():
    mask = make_mask(0)
    made = make_card(mask, bmt_core.encode(mask), PLACE)
    assert is_untouched(made.replace("\n", "\r\n"))
    assert not is_untouched(made.replace("math", "meth"))
    assert not is_untouched(made + "\nMore.\n")
    assert not is_untouched("# My own\n")
    assert not is_untouched("")
