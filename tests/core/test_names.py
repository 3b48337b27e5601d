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


def test_digests_are_whole_and_lower_case():
    assert bmt_core.validate_digest(DIGEST) == DIGEST
    for text in (DIGEST[:-1], DIGEST + "0", DIGEST.upper(), "sha256:" + DIGEST):
        with pytest.raises(bmt_core.InvalidName):
            bmt_core.validate_digest(text)
