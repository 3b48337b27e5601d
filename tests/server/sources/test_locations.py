"""Sources as text: one spelling, no credentials, no paths on the server; the operator's list."""

from __future__ import annotations

import pytest
from bmt_server.errors import ApiError, BadRequest, Forbidden
from bmt_server.settings import SettingsError
from bmt_server.sources.allow_list import AllowList
from bmt_server.sources.locations import HubFile, StoredVersion, WebFile, parse_location, parse_url
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cpu_time import least_cpu

DIGEST = "3f9c" * 16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://files.example.com/a.bmt", "https://files.example.com/a.bmt"),
        ("HTTPS://Files.Example.com.:443/a%20b?X-Sig=s#"[:-1], "https://files.example.com/a%20b"),
        ("https://[2001:DB8::1]:8443/m", "https://[2001:db8::1]:8443/m"),
        ("http://10.1.2.3/m", "http://10.1.2.3/m"),
        ("hf://acme/Masks.v1/dir/math.bmt", "hf://acme/Masks.v1/dir/math.bmt"),
        ("hf://acme/masks@refs%2Fpr%2F1/m.bmt", "hf://acme/masks@refs%2Fpr%2F1/m.bmt"),
        ("s3://masks/team/math.bmt", "s3://masks/team/math.bmt"),
        (f"sha256:{DIGEST}", f"sha256:{DIGEST}"),
        ("math@3f9c0a1b2c3d", "math@3f9c0a1b2c3d"),
        ("math:prod", "math:prod"),
    ],
)
def test_sources_in_one_spelling(text, shown):
    assert parse_location(text).shown == shown


def test_a_query_is_kept_for_the_request_alone():
    place = parse_location("https://h.example/a.bmt?X-Amz-Signature=secret")
    assert isinstance(place, WebFile)
    assert place.target.endswith("?X-Amz-Signature=secret")
    assert "secret" not in place.shown


@pytest.mark.parametrize(
    "text",
    [
        # Paths of the server, in all their forms.
        *("/etc/passwd", "./m.bmt", "../m.bmt", "m.bmt", "math", "C:\\m.bmt", "~/m.bmt"),
        *("file:///etc/passwd", "FILE:/etc/passwd", "org/name", ""),
        # Other schemes.
        *("ftp://h/x", "gopher://h/x", "data:text/plain,x", "unix:///s", "//h/x"),
        *("gs://b/k", "az://b/k", "docker://h/x", "dict://h:11211/x", "hf:acme/m/f"),
        # Credentials, and hosts that parsers read differently.
        *("https://user:pw@h.example/x", "https://h.example@evil.example/x", "https://@h/x"),
        *("https://h.example\\@evil.example/x", "https://h.example /x", "https://h\t.example/x"),
        *("https://h.example#@evil/x", "https:///x", "https://", "https://h:0/x"),
        *("https://h:99999/x", "https://[::1/x", "https://[fe80::1%25eth0]/x", "https://h..x/x"),
        *("https://häuser.example/x", "https://h%2eexample/x", "https://h.example/\r\nHost: x"),
        # Out of the allowed folder.
        *("https://h/a/../b", "https://h/a/%2e%2e/b", "https://h/a/%252e%252e/b", "https://h/./b"),
        *("https://h/a/..;/b", "https://h/a/..;x=1/b", "https://h/a/%2e%2e%3b/b", "https://h/.;/b"),
        *("s3://masks/a/..;/b", "hf://acme/m/..;/f", "https://h/%2525252525252e%252e/b"),
        *("https://h/a/..%2fb", "https://h/a%5c..%5cb", "s3://masks/a/../b", "s3://masks//b"),
        *("hf://acme/m/../x/f", "hf://acme/m@a%2F../f", "hf://../m/f", "hf://acme/m/%2e%2e/f"),
        # Incomplete, or of another kind.
        *("hf://acme", "hf://acme/m", "hf://acme/m/", "hf://acme/m@/f", "hf://datasets/a/m/f"),
        *("hf://acme/m/f?x=1", "s3://masks", "s3://masks/", "s3://Masks/k", "s3://a.com/../k"),
        *("s3://u:p@masks/k", "s3://masks/k?versionId=1", "sha256:3f9c", f"sha256:{DIGEST}0"),
        *("math@zz", "math:", ":prod", "a/b@3f9c0a1b2c3d"),
        "https://h.example/" + "a" * 5000,
    ],
)
def test_what_is_no_source_is_refused_in_a_line(text):
    with pytest.raises(BadRequest) as caught:
        parse_location(text)
    assert caught.value.code == "source_invalid"
    assert "hf://org/name/file.bmt" in str(caught.value)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_url_is_refused_at_once():
    """A server of the list may redirect to one; nested encodings took seconds."""

    def refuse() -> None:
        for text in ("https://h/%" + "25" * 30_000, "https://h/%" + "25" * 8000):
            with pytest.raises(BadRequest):
                parse_url(text)

    assert least_cpu(refuse, 0.1) < 0.1


@given(st.text(max_size=80))
def test_any_text_is_a_source_or_refused(text):
    for prefix in ("", "https://", "hf://", "s3://", "sha256:"):
        try:
            place = parse_location(prefix + text)
        except ApiError:
            continue
        assert parse_location(place.shown).shown == place.shown


@pytest.mark.parametrize(
    ("entries", "text", "allowed"),
    [
        ("hf://", "hf://acme/m/f", True),
        ("hf://acme", "hf://acme/m/f", True),
        ("hf://acme", "hf://acmeevil/m/f", False),
        ("hf://acme/m", "hf://acme/m@main/f", True),
        ("hf://acme/m", "hf://acme/m2/f", False),
        ("s3://masks", "s3://masks/k", True),
        ("s3://masks/team", "s3://masks/team/k", True),
        ("s3://masks/team/", "s3://masks/teams/k", False),
        ("s3://masks", "s3://masks2/k", False),
        ("https://h.example", "https://h.example/x", True),
        ("https://h.example", "https://h.example:8443/x", False),
        ("https://h.example", "http://h.example/x", False),
        ("https://h.example", "https://h.example.evil.example/x", False),
        ("https://h.example", "https://evil-h.example/x", False),
        ("https://h.example/a/", "https://h.example/a/x", True),
        ("https://h.example/a", "https://h.example/ab", False),
        ("https://*.example", "https://a.b.example/x", True),
        ("https://*.example", "https://example/x", False),
        ("https://*.example", "https://aexample/x", False),
        ("http://10.1.2.3:8080", "http://10.1.2.3:8080/x", True),
        ("hf://acme, s3://masks", "s3://masks/x", True),
        ("s3://masks", "https://masks/x", False),
    ],
)
def test_the_operators_list(entries, text, allowed):
    place = parse_location(text)
    if allowed:
        AllowList(entries).check(place)
        return
    with pytest.raises(Forbidden, match="--import-from") as caught:
        AllowList(entries).check(place)
    assert caught.value.code == "source_not_allowed"


def test_an_empty_list_says_which_setting_opens_imports():
    with pytest.raises(Forbidden, match="--import-from") as caught:
        AllowList("").check(HubFile("acme/m", "f"))
    assert caught.value.code == "imports_off"
    AllowList("").check(StoredVersion("math:prod"))


@pytest.mark.parametrize(
    "entry",
    [
        *("huggingface.co", "https://", "https://*", "https://a.*.example", "https://u:p@h", "*"),
        *("file:///srv", "hf://a/b/c", "s3://", "s3://B", "https://h/../x", "https://h?x=1"),
    ],
)
def test_a_wrong_entry_ends_the_start(entry):
    with pytest.raises(SettingsError, match="--import-from"):
        AllowList(f"hf://acme,{entry}")


@pytest.mark.parametrize(
    "entry",
    [
        "https://key:s3cret@files.example.com/masks",
        "https://key:p?s3cret@files.example.com",
        "https://files.example.com/masks?sig=s3cret",
        "hf://key:s3cret@acme",
        "s3://key:s3cret@masks",
        "key:s3cret@files.example.com",
    ],
)
def test_a_wrong_entrys_credentials_are_not_in_the_message(entry):
    """It ends the start, so it is in the log of each restart."""
    with pytest.raises(SettingsError, match="--import-from") as caught:
        AllowList(entry)
    assert "s3cret" not in str(caught.value)
