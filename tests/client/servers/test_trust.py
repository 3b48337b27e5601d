"""Private authorities and proxies: the same in every command, in the SDK and in `openai()`."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import ExitStack
from urllib.parse import urlsplit

import bmt_core
import pytest
import trustme
from bmt_client import AsyncBmtClient, BmtClient, Unavailable, UsageError

from tests.support.http.commands import COMMANDS, all_commands, stdin, words, write_files
from tests.support.http.fake_server import KEY, FakeServer, serving
from tests.support.http.foreign import proxying
from tests.support.http.ports import free_port
from tests.support.masks import make_mask

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "masks.test").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def folder(authority, tmp_path_factory):
    """The authority's certificate as a file, and as a folder of hashed names."""
    made = tmp_path_factory.mktemp("authority")
    authority.cert_pem.write_to_path(made / "ca.pem")
    (made / "hashed").mkdir()
    name = _hash(made / "ca.pem")
    authority.cert_pem.write_to_path(made / "hashed" / f"{name}.0")
    return made


def _hash(path):
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def secure(tls):
    """A server in TLS with the mask that the command lines name."""
    with serving(FakeServer(), tls) as fake:
        fake.shows_key = True
        fake._store("math", make_mask(0), bmt_core.encode(make_mask(0)), None)
        for alias in ("prod", "eu"):
            fake.aliases["math", alias] = fake.latest["math"]
        yield fake


@pytest.fixture
def run_all(program, tmp_path, monkeypatch):
    """Run every command against a server; each must end with 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    monkeypatch.setenv("BMT_TO_API_KEY", KEY)
    write_files(tmp_path)

    def run(url, *flags):
        for name in all_commands():
            # The server has no keys, which it says; all others succeed.
            code = 0 if name in COMMANDS else 4
            program(*flags, "--retries", "0", *words(name, url), stdin=stdin(name), exit_code=code)

    return run


@pytest.mark.found
@pytest.mark.parametrize("way", ["--ca-file", "BMT_CA_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_every_command_trusts_a_private_authority(run_all, secure, folder, monkeypatch, way):
    flags = []
    if way.startswith("--"):
        flags = [way, folder / "ca.pem"]
    else:
        monkeypatch.setenv(way, str(folder / ("hashed" if way == "SSL_CERT_DIR" else "ca.pem")))
    run_all(secure.url, *flags)


@pytest.mark.found
def test_both_clients_and_openai_trust_the_same(secure, folder):
    ca = str(folder / "ca.pem")
    with BmtClient(secure.url, KEY, ca_file=ca) as client, client.openai() as stock:
        assert client.get("math").rev == 1
        answer = stock.chat.completions.create(model="math", messages=MESSAGES, stream=True)
        assert next(iter(answer)).model.startswith("math@")
        assert stock.models.list().data[0].id == "base"
    with BmtClient(secure.url, KEY, max_retries=0) as client, pytest.raises(Unavailable) as caught:
        client.get("math")
    assert caught.value.code == "certificate"

    async def both() -> str:
        async with AsyncBmtClient(secure.url, KEY, ca_file=ca) as client:
            async with client.openai() as stock:
                listed = await stock.models.list()
            return f"{(await client.get('math')).rev} {listed.data[0].id}"

    assert asyncio.run(both()) == "1 base"


@pytest.mark.parametrize("content", [None, "", "no certificate"])
@pytest.mark.parametrize("way", ["BMT_CA_FILE", "SSL_CERT_FILE"])
def test_a_file_without_certificates_is_named(program, tmp_path, monkeypatch, way, content):
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(way, str(path))
    found = program("--url", "https://127.0.0.1:1", "list", exit_code=2)
    assert str(path) in found.stderr
    assert way in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_folder_without_hashed_names_is_named(program, folder):
    found = program("--url", "https://h.test", "--ca-file", folder, "list", exit_code=2)
    assert f"openssl rehash {folder}" in found.stderr


@pytest.mark.found
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_every_command_uses_the_proxy(run_all, secure, folder, monkeypatch, scheme):
    with ExitStack() as stack:
        if scheme == "http":
            plain = stack.enter_context(serving(FakeServer()))
            plain.shows_key = True
            for part in ("versions", "latest", "aliases", "blobs", "revs"):
                setattr(plain, part, getattr(secure, part))
            port = urlsplit(plain.url).port
        else:
            port = urlsplit(secure.url).port
        proxy = stack.enter_context(proxying(port))
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        url = f"{scheme}://masks.test:{port}"
        run_all(url, "--ca-file", folder / "ca.pem", "--allow-insecure")
        assert len(proxy.seen) >= len(COMMANDS)
        with (
            BmtClient(url, KEY, ca_file=str(folder / "ca.pem"), allow_insecure=True) as client,
            client.openai() as stock,
        ):
            count = len(proxy.seen)
            stock.models.list()
            assert len(proxy.seen) == count + 1
            monkeypatch.setenv("NO_PROXY", "masks.test")
        # No name server knows the host: without the proxy there is no way to it.
        direct = BmtClient(url, KEY, max_retries=0, allow_insecure=True)
        with direct, pytest.raises(Unavailable):
            direct.get("math")
        assert len(proxy.seen) == count + 1


@pytest.mark.found
def test_no_command_uses_the_proxy_to_this_machine(run_all, secure, folder, monkeypatch):
    with proxying(urlsplit(secure.url).port) as proxy:
        for scheme in ("HTTP", "HTTPS", "ALL"):
            monkeypatch.setenv(f"{scheme}_PROXY", proxy.url)
        run_all(secure.url, "--ca-file", folder / "ca.pem")
        with BmtClient(secure.url, KEY, ca_file=str(folder / "ca.pem")) as client:
            client.openai().models.list()
        assert proxy.seen == []


@pytest.mark.parametrize(
    ("proxy", "exit_code", "text"),
    [
        ("refuses", 7, "407"),
        ("absent", 7, "through HTTPS_PROXY"),
        ("socks5://user:secret@proxy.test", 2, "httpx2[socks]"),
        ("ftp://user:secret@proxy.test", 2, "HTTPS_PROXY"),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["chat", "math", "hi"]])
def test_a_faulty_proxy_is_named(program, monkeypatch, proxy, exit_code, text, command):
    with proxying(free_port()) as refusing:
        refusing.refusal = 407
        address = {"refuses": refusing.url, "absent": f"http://127.0.0.1:{free_port()}"}
        monkeypatch.setenv("HTTPS_PROXY", address.get(proxy, proxy))
        flags = ["--url", "https://masks.test", "--retries", "0"]
        found = program(*flags, *command, exit_code=exit_code)
    assert text in found.stderr
    assert "secret" not in found.output
    assert len(found.stderr.splitlines()) <= 2


def test_an_http_client_of_another_library_is_refused():
    with pytest.raises(UsageError, match=r"must be an httpx2\.Client"):
        BmtClient("http://127.0.0.1:1", KEY, http_client=object())
