"""URLs of registries: every form, and what is refused by name."""

from __future__ import annotations

import os

import pytest
from bmt_server.cli.common import complete_url
from bmt_server.ipc.registry_address import RegistryAddress, with_password
from bmt_server.settings import SettingsError


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "tls"),
    [
        ("redis://h", "server", (("h", 6379),), False),
        ("rediss://u:p@h:1/2", "server", (("h", 1),), True),
        ("valkey://h:1", "server", (("h", 1),), False),
        ("valkeys://[::1]:1", "server", (("::1", 1),), True),
        ("unix:///run/s", "server", (), False),
        ("redis+sentinel://a,b:1/masks/3", "sentinel", (("a", 26379), ("b", 1)), False),
        ("valkeys+sentinel://a/masks", "sentinel", (("a", 26379),), True),
        ("redis+cluster://u:p@a:1,b", "cluster", (("a", 1), ("b", 6379)), False),
    ],
)
def test_forms(url, kind, nodes, tls):
    address = RegistryAddress.parse(url)
    assert (address.kind, address.nodes, address.tls) == (kind, nodes, tls)


def test_users_passwords_and_databases():
    one = RegistryAddress.parse("redis://u%40x:p%2F%3A%40@h/2?client_name=n")
    assert one.options == {"username": "u@x", "password": "p/:@", "db": 2, "client_name": "n"}
    two = RegistryAddress.parse("redis+sentinel://u:p@a,b/masks/1?sentinel_password=s%20t")
    assert (two.service, two.options["password"], two.options["db"]) == ("masks", "p", 1)
    assert two.sentinel_options == {"password": "s t"}
    assert RegistryAddress.parse("unix://u:p@/run/s?db=4").options == {
        "username": "u",
        "password": "p",
        "path": "/run/s",
        "db": 4,
    }


def test_neither_text_nor_repr_contains_a_secret():
    for url in (
        "redis://user:hunter2@h",
        "redis+sentinel://user:hunter2@h/m?sentinel_password=hunter2",
        "unix://user:hunter2@/run/s",
    ):
        address = RegistryAddress.parse(url)
        assert "hunter2" not in f"{address} {address!r}"
        assert "user" not in str(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://",
        "redis://h:port",
        "redis://h:70000",
        "redis://a,b",
        "redis://h/masks",
        "redis://h?sentinel_password=x",
        "redis://h?colour=red",
        "redis://h?decode_responses=true",
        "redis://h?encoding=utf-16&prefix=a",
        "redis://h?retry=3",
        "redis://h?credential_provider=x",
        "redis://h?protocol=9",
        "unix:///s?redis_connect_func=x",
        "redis+sentinel://h",
        "redis+sentinel://h/masks/x",
        "redis+cluster://h/1",
        "unix+cluster:///s",
        "unix://host/s",
        "redis+proxy://h",
    ],
)
def test_what_is_no_registry_is_refused_without_its_password(url):
    given = url.replace("://", "://u:hunter2@", 1)
    for text in (url, given):
        with pytest.raises(ValueError, match=r"registry|hosts|URL") as found:
            RegistryAddress.parse(text)
        assert "hunter2" not in str(found.value)


def test_a_password_with_a_bare_slash_is_not_repeated():
    with pytest.raises(ValueError, match="encode") as found:
        RegistryAddress.parse("redis://user:hunter2/x@h:6379")
    assert "hunter2" not in str(found.value)


@pytest.mark.found
@pytest.mark.parametrize("password", ["ab/cd", "p@ss#", "a:b", "%41", "ü ?&=", "plain"])
@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("redis://host:6380/2", None),
        ("rediss://masks@host:6380/2?ssl_cert_reqs=none", "masks"),
        ("redis+sentinel://a,b:26380/masks/2", None),
        ("redis+cluster://masks@a,b:7000", "masks"),
        ("unix:///run/redis.sock?db=2", None),
    ],
)
def test_a_password_of_its_own_arrives_as_it_is(url, user, password):
    before = RegistryAddress.parse(url)
    found = RegistryAddress.parse(with_password(url, password))
    assert found.options["password"] == password
    assert found.options.get("username") == user
    assert (found.nodes, found.tls, found.service) == (before.nodes, before.tls, before.service)
    assert found.options.get("db") == before.options.get("db")


def test_a_password_in_the_url_has_precedence():
    assert with_password("redis://u:own@host", "other") == "redis://u:own@host"
    with pytest.raises(ValueError, match="must begin"):
        with_password("host:6379", "other")


def test_the_environment_completes_the_url_of_every_command(monkeypatch):
    monkeypatch.setenv("BMT_REGISTRY_PASSWORD", "ab/cd")
    assert complete_url("redis://host") == "redis://:ab%2Fcd@host"
    monkeypatch.setenv("BMT_REGISTRY_PASSWORD", "ab/cd\n")
    assert complete_url("redis://host") == "redis://:ab%2Fcd@host"
    # Engine processes have no use for it.
    assert "BMT_REGISTRY_PASSWORD" not in os.environ
    assert complete_url("redis://host") == "redis://host"
    monkeypatch.setenv("BMT_REGISTRY_PASSWORD", "secret")
    with pytest.raises(SettingsError, match="BMT_REGISTRY") as caught:
        complete_url("")
    assert "secret" not in str(caught.value)
