"""Selection and validation of the server address and key."""

from __future__ import annotations

import json
import stat

import pytest
from bmt_client import AsyncBmtClient, BmtClient, UsageError
from bmt_client._config import config_path, normal_url, resolve, store


def test_argument_before_environment_before_file_before_default(monkeypatch):
    assert resolve(None, None, None).url == "http://127.0.0.1:8000"
    assert resolve(None, None, None).api_key is None
    store("https://file.example", "bmt_file")
    found = resolve(None, None, None)
    assert (found.url, found.api_key, found.timeout_s) == ("https://file.example", "bmt_file", 60.0)
    monkeypatch.setenv("BMT_URL", "https://env.example/")
    monkeypatch.setenv("BMT_API_KEY", "bmt_env")
    monkeypatch.setenv("BMT_TIMEOUT", "7")
    found = resolve(None, None, None)
    assert (found.url, found.api_key, found.timeout_s) == ("https://env.example", "bmt_env", 7.0)
    found = resolve("https://arg.example", "bmt_arg", 3)
    assert (found.url, found.api_key, found.timeout_s) == ("https://arg.example", "bmt_arg", 3.0)


def test_a_stored_key_goes_to_its_own_server_only():
    store("https://a.example", "bmt_a")
    assert resolve("https://b.example", None, None).api_key is None
    assert resolve("https://A.example/v1/", None, None).api_key == "bmt_a"


def test_storing_keeps_the_others_and_forgets_one():
    store("https://a.example", "bmt_a")
    path = store("https://b.example", "bmt_b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["keys"] == {
        "https://a.example": "bmt_a",
        "https://b.example": "bmt_b",
    }
    store("https://a.example", None)
    assert json.loads(path.read_text())["keys"] == {"https://b.example": "bmt_b"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_config_file_that_others_can_read_is_refused():
    path = store("https://a.example", "bmt_a")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600") as caught:
        BmtClient()
    assert caught.value.code == "config_mode"
    assert "bmt_a" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_broken_config_file_is_named(content):
    path = config_path()
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(UsageError, match=r"client\.json"):
        BmtClient()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://Host.example/v1/", "https://host.example"),
        ("https://host/prefix/v1", "https://host/prefix"),
        (" http://[::1]:8000/ ", "http://[::1]:8000"),
    ],
)
def test_urls_are_normalized(url, found):
    assert normal_url(url) == found


@pytest.mark.parametrize(
    "url",
    ["", "host:8000", "ftp://host", "http://", "file:///x", "http://u:p@host", "http://h/?k=1",
     "http://h/#x", "http://h:99999", "http://[::1"],
)  # fmt: skip
def test_other_urls_are_refused(url):
    with pytest.raises(UsageError):
        normal_url(url)


@pytest.mark.parametrize("kind", [BmtClient, AsyncBmtClient])
@pytest.mark.parametrize("host", ["10.0.0.1", "masks.example", "127.0.0.1.example", "[fe80::1]"])
def test_a_key_is_not_sent_unencrypted(kind, host):
    with pytest.raises(UsageError, match="https://") as caught:
        kind(f"http://{host}:8000", "bmt_secret")
    assert caught.value.code == "insecure_url"
    assert "bmt_secret" not in str(caught.value)
    kind(f"http://{host}:8000")
    kind(f"https://{host}:8000", "bmt_secret")
    kind(f"http://{host}:8000", "bmt_secret", allow_insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]", "a.localhost"])
def test_loopback_needs_no_encryption(host):
    assert resolve(f"http://{host}:8000", "bmt_secret", None).loopback


@pytest.mark.parametrize("key", ["a\nb", "ключ", "a" * 4097, " "])
def test_an_invalid_key_is_refused_and_not_in_the_message(key):
    with pytest.raises(UsageError, match="API key") as caught:
        BmtClient(api_key=key)
    assert key.strip() == "" or key not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, "soon", "nan", "inf"])
def test_a_timeout_is_a_number_of_seconds(timeout, monkeypatch):
    monkeypatch.setenv("BMT_TIMEOUT", str(timeout))
    with pytest.raises(UsageError, match="timeout"):
        BmtClient()
