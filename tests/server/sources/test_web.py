"""Downloads of imports against servers that redirect, hang, drip, never end, or lie."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from types import SimpleNamespace

import httpx2
import pytest
from bmt_server.errors import ApiError, RateLimited, Unavailable
from bmt_server.sources.importer import Importer
from bmt_server.sources.locations import parse_location

from tests.support.http.sources import Authority, Names, redirect, response, source_server

MAX_BYTES = 1000
AUTHORITY = Authority()
BOMB = gzip.compress(b"x" * 10**7)


def importer(allowed, names=None, *, networks="127.0.0.0/8", seconds=20.0):
    settings = SimpleNamespace(
        import_from=allowed, import_networks=networks, import_timeout_s=seconds
    )
    return Importer(settings, names or Names(), AUTHORITY.trust)  # type: ignore[arg-type]


async def read(reader, url, received=lambda size: None):
    return await reader.read(parse_location(url), MAX_BYTES, received)


async def refusal(reader, url):
    with pytest.raises(ApiError) as caught:
        await read(reader, url)
    return caught.value


@pytest.fixture
async def server():
    async with source_server(AUTHORITY.server()) as one:
        yield one


def of(server, host="files.test"):
    return f"https://{host}:{server.port}"


async def test_a_file_its_source_and_its_peer(server):
    server.answers["/a.bmt"] = response(b"x" * MAX_BYTES)
    sizes: list[int] = []
    url = server.url("/a.bmt?X-Amz-Signature=secret")
    fetched = await read(importer(of(server)), url, sizes.append)
    assert (fetched.data, sum(sizes)) == (b"x" * MAX_BYTES, MAX_BYTES)
    assert (fetched.source, fetched.address) == (server.url("/a.bmt"), "127.0.0.1")
    ((target, fields),) = server.seen
    assert target == "/a.bmt?X-Amz-Signature=secret"
    assert fields["host"] == f"files.test:{server.port}"
    assert fields["accept-encoding"] == "identity"
    assert not fields.keys() & {"authorization", "cookie"}


async def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/a"] = response(b"x")
    assert (await read(importer(of(server)), server.url("/a"))).data == b"x"


async def test_a_private_address_is_refused_before_any_connection(server, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    server.answers["/a"] = response(b"x")
    for addresses in (["127.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1"]):
        reader = importer(of(server), Names(addresses), networks="")
        error = await refusal(reader, server.url("/a"))
        assert (error.status, error.code) == (403, "address_not_public")
        assert "--import-networks" in str(error)
        # A caller learns no address of the inside; the operator does.
        assert not any(address in str(error) for address in addresses)
        assert addresses[-1] in caplog.text
    assert server.connections == 0


async def test_metadata_is_refused_in_any_network():
    reader = importer("http://169.254.169.254", Names(["169.254.169.254"]), networks="0.0.0.0/0")
    error = await refusal(reader, "http://169.254.169.254/latest/meta-data")
    assert error.code == "address_not_public"


async def test_a_host_is_resolved_once_and_the_checked_address_is_used(server):
    """The second answer of a rebinding resolver is never asked for."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    server.answers["/a"] = response(b"x")
    assert (await read(importer(of(server), names), server.url("/a"))).address == "127.0.0.1"
    assert names.calls == ["files.test"]


async def test_each_hop_is_resolved_and_checked(server):
    """A redirect to the same host, whose name has moved inside by then."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    server.answers["/a"] = response(status="302 Found", Location="/b", Connection="close")
    reader = importer(of(server), names, networks="127.0.0.0/8")
    assert (await refusal(reader, server.url("/a"))).code == "address_not_public"


async def test_a_host_with_an_address_that_does_not_answer_has_others(server):
    server.answers["/a"] = response(b"x")
    names = Names(["127.0.0.9", "127.0.0.1"])
    assert (await read(importer(of(server), names), server.url("/a"))).data == b"x"


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
async def test_redirects_are_followed_within_the_list(server, status):
    server.answers["/a"] = redirect("/b?token=secret", status)
    server.answers["/b"] = redirect(server.url("/c", "other.test"), status)
    server.answers["/c"] = response(b"x")
    reader = importer(f"{of(server)},{of(server, 'other.test')}")
    fetched = await read(reader, server.url("/a"))
    assert (fetched.data, fetched.source) == (b"x", server.url("/a"))


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("https://other.test:{port}/b", "source_not_allowed"),
        ("http://files.test:{port}/b", "source_not_allowed"),
        ("https://files.test/b", "source_not_allowed"),
        ("https://169.254.169.254/latest/meta-data", "source_not_allowed"),
        ("http://localhost/", "source_not_allowed"),
        ("file:///etc/passwd", "source_redirects"),
        ("gopher://files.test/x", "source_redirects"),
        ("https://user:pw@files.test:{port}/b", "source_redirects"),
        ("https://files.test:{port}/a/../b", "source_redirects"),
        ("https://[::1/x", "source_redirects"),
        ("//other.test:{port}/b", "source_not_allowed"),
        ("https://häuser.test/x", "source_redirects"),
    ],
)
async def test_redirects_out_of_the_list_are_not_followed(server, location, code):
    server.answers["/a"] = redirect(location.format(port=server.port))
    server.answers["/b"] = response(b"x")
    error = await refusal(importer(of(server)), server.url("/a"))
    assert (error.code, len(server.seen)) == (code, 1)
    assert "pw" not in str(error)


async def test_redirects_are_bounded(server):
    server.answers["/a"] = redirect("/a")
    error = await refusal(importer(of(server)), server.url("/a"))
    assert (error.status, error.code, len(server.seen)) == (422, "source_redirects", 6)


async def test_plain_http_needs_an_entry_of_its_own():
    async with source_server(None) as plain:
        plain.answers["/a"] = response(b"x")
        assert (await refusal(importer(of(plain)), plain.url("/a"))).code == "source_not_allowed"
        assert (await read(importer(f"http://files.test:{plain.port}"), plain.url("/a"))).data


async def test_a_certificate_of_another_name_or_authority(server):
    server.answers["/a"] = response(b"x")
    reader = importer(f"https://evil.test:{server.port}")
    error = await refusal(reader, server.url("/a", "evil.test"))
    assert (error.status, error.code) == (503, "source_unavailable")
    assert "certificate" in str(error)
    reader = importer(of(server))
    reader._reader._trust = Authority().trust
    assert "SSL_CERT_FILE" in str(await refusal(reader, server.url("/a")))
    assert server.seen == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_read(server, tmp_path, monkeypatch, content):
    """It was an internal error, with a traceback for each import."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    reader = importer(of(server))
    reader._reader._trust = httpx2.create_ssl_context
    error = await refusal(reader, server.url("/a"))
    assert (error.status, error.code) == (503, "source_unavailable")
    assert "SSL_CERT_FILE" in str(error)
    path.write_bytes(AUTHORITY._ca.cert_pem.bytes())
    server.answers["/a"] = response(b"x")
    assert (await read(reader, server.url("/a"))).data == b"x"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (response(status="404 No"), 404, "source_not_found"),
        (response(status="410 Gone"), 404, "source_not_found"),
        (response(status="401 No"), 403, "source_forbidden"),
        (response(status="403 No"), 403, "source_forbidden"),
        (response(status="429 Slow"), 503, "source_unavailable"),
        (response(status="500 Oh"), 503, "source_unavailable"),
        (response(b"x", status="206 Part"), 422, "source_answer"),
        (response(status="204 None"), 422, "source_answer"),
        (response(status="304 Same"), 422, "source_answer"),
        (response(status="302 Nowhere"), 422, "source_answer"),
        (response(b"x" * (MAX_BYTES + 1)), 413, "too_large"),
        (response(b"x", Content_Length="9" * 19), 413, "too_large"),
        (
            response(BOMB[:900], Content_Encoding="gzip"),
            422,
            "source_answer",
        ),
        (response(b"x", Content_Encoding="zstd, br"), 422, "source_answer"),
        (response(b"x", Content_Length="-1"), 503, "source_unavailable"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 503, "source_unavailable"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000, 503, "source_unavailable"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 503, "source_unavailable"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_answers_that_are_no_file(server, answer, status, code):
    server.answers["/a"] = answer
    error = await refusal(importer(of(server)), server.url("/a?sig=secret"))
    assert (error.status, error.code) == (status, code)
    assert "secret" not in str(error)


def endless(chunked, pause_s=0.0, size=200):
    """A body without an end: chunked, or as long as the connection."""

    async def write(writer):
        kind = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n")
        while True:
            data = b"x" * size
            writer.write(b"%x\r\n%s\r\n" % (size, data) if chunked else data)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return write


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_without_an_end_ends_at_the_bound(server, chunked):
    server.answers["/a"] = endless(chunked)
    sizes: list[int] = []
    with pytest.raises(ApiError) as caught:
        await read(importer(of(server)), server.url("/a"), sizes.append)
    assert caught.value.code == "too_large"
    assert sum(sizes) <= MAX_BYTES


async def silent(writer):
    await asyncio.sleep(60)


async def drip_headers(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def many_informational(writer):
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "answer",
    [silent, drip_headers, many_informational, endless(True, 0.02, 1), endless(False, 0.02, 1)],
    ids=["silent", "headers", "informational", "chunks", "bytes"],
)
async def test_the_whole_import_has_a_bound_in_time(server, answer):
    server.answers["/a"] = answer
    started = time.monotonic()
    error = await refusal(importer(of(server), seconds=0.4), server.url("/a"))
    assert (error.status, error.code) == (503, "source_unavailable")
    assert "--import-seconds" in str(error)
    assert time.monotonic() - started < 5


async def test_a_body_that_breaks_off_is_no_file(server):
    async def cut(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nxxx")
        await writer.drain()

    server.answers["/a"] = cut
    error = await refusal(importer(of(server)), server.url("/a"))
    assert error.code == "source_unavailable"


async def test_hosts_without_an_address_or_a_server():
    async def unknown(host, port):
        raise OSError("Name or service not known")

    error = await refusal(importer("https://files.test", unknown), "https://files.test/a")
    assert (error.status, error.code) == (503, "source_unavailable")
    error = await refusal(importer("https://files.test:1"), "https://files.test:1/a")
    assert (error.status, error.code) == (503, "source_unavailable")


async def test_places_of_imports_by_key_and_in_all():
    reader, stack = importer(""), []

    def admit(key):
        stack.append(reader.admit(key))
        stack[-1].__enter__()

    for key in range(4):
        for _ in range(4):
            admit(str(key))
    with pytest.raises(RateLimited), reader.admit("0"):
        pass
    with pytest.raises(Unavailable) as caught, reader.admit("9"):
        pass
    assert caught.value.code == "imports_full"
    for place in stack:
        place.__exit__(None, None, None)
    with reader.admit("9"):
        assert reader._of_key == {"9": 1}
