"""Grammar of mask names and references."""

import bmt_core
import pytest

DIGEST = "3f9c1a2b4d5e" + "0" * 52


@pytest.mark.parametrize(
    "text", ["math", "a", "a-b", "a.b_c-1", "math:prod", "math@" + DIGEST, "math@" + DIGEST[:12]]
)
def test_good_references_round_trip(text):
    assert str(bmt_core.MaskRef.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "A",
            "a b",
            "a--b",
            "-a",
            "a-",
            "a\n",
            "a:",
            ":a",
            "é",
            "a" * 129,
        ),
        *("a@", "a@123", "a@" + "G" * 12, "a@" + DIGEST.upper(), "a@" + DIGEST + "0", "a:b:c"),
        *("a:prod@" + DIGEST, "a@" + DIGEST + ":prod", "a\u202eb", "a%2fb", "a\x00"),
    ],
)
def test_bad_references_are_refused(text):
    with pytest.raises(bmt_core.InvalidName) as caught:
        bmt_core.MaskRef.parse(text)
    assert caught.value.code == "name_invalid"


def test_digests_have_64_lower_case_digits():
    assert bmt_core.validate_digest(DIGEST) == DIGEST
    for text in (DIGEST[:-1], DIGEST + "0", DIGEST.upper(), "sha256:" + DIGEST):
        with pytest.raises(bmt_core.InvalidName):
            bmt_core.validate_digest(text)


@pytest.mark.parametrize("value", [None, 5, b"math", ["math"], 1.5])
def test_values_that_are_not_text_are_refused(value):
    for check in (
        bmt_core.validate_name,
        bmt_core.validate_alias,
        bmt_core.validate_digest,
        bmt_core.MaskRef.parse,
    ):
        with pytest.raises(bmt_core.InvalidName):
            check(value)


def test_the_longest_name_is_allowed():
    assert bmt_core.validate_name("a" * 128) == "a" * 128
    ref = bmt_core.MaskRef.parse("a" * 128 + ":" + "b" * 128)
    assert (ref.name, ref.alias, ref.digest_prefix) == ("a" * 128, "b" * 128, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("acme/support-bot", "acme.support-bot"),
        ("Acme/Support__Bot", "acme.support-bot"),
        ("Llama-3-SQL", "llama-3-sql"),
        ("a__b", "a-b"),
        ("rft@v2", "rft-v2"),
        ("a/b/c", "a.b.c"),
        ("/a/", "a"),
        ("b" * 500, "b" * 128),
        ("math", "math"),
        ("é", None),
        ("", None),
        ("math:prod", None),
        ("math@3f9c1a2b4d5e", None),
    ],
)
def test_names_of_elsewhere_have_one_name_here(text, name):
    assert bmt_core.suggest_name(text) == name
    if name is None:
        return
    assert bmt_core.validate_name(name) == name
    assert bmt_core.suggest_name(name) == name
    if text != name and len(text) < 80:
        with pytest.raises(bmt_core.InvalidName, match=f"use '{name}'"):
            bmt_core.validate_name(text)
