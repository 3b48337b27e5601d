"""Methods of both clients over a real socket."""

from __future__ import annotations

import hashlib
import os
import random
import ssl
import stat

import bmt_core
import httpx2
import pytest
from bmt_client import (
    AuthenticationError,
    BmtClient,
    Conflict,
    Invalid,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    TooLarge,
    Unavailable,
    UsageError,
    Version,
)

from tests.support.http.fake_server import KEY, Fault
from tests.support.http.ports import free_port
from tests.support.masks import make_mask


def test_upload_takes_a_path_bytes_or_a_mask(client, tmp_path):
    mask = make_mask(1, name="from-metadata")
    path = tmp_path / "Math v2 (1).bmt"
    bmt_core.save(mask, path)
    assert client.upload(path).name == "math-v2-1"
    assert client.upload(str(path), "given").name == "given"
    assert client.upload(mask).name == "from-metadata"
    found = client.upload(path.read_bytes())
    assert (found.name, found.digest, found.changed) == ("from-metadata", mask.digest, False)


def test_upload_returns_the_stored_version(client, server):
    mask = make_mask(1, task="sums")
    found = client.upload(mask, "math", alias=["prod", "eu"])
    assert found.changed
    assert found.rev == 1
    assert found.model == f"math@{mask.digest[:12]}"
    assert (found.zeros, found.sparsity) == (mask.zeros, mask.sparsity)
    assert set(found.aliases) == {"latest", "prod", "eu"}
    assert found.metadata == {"task": "sums"}
    assert found.base.model_id == "tiny"
    method, path, headers = server.requests[-1]
    assert (method, path) == ("PUT", "/v1/masks/math?alias=prod&alias=eu")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Length"] == str(found.bytes)
    assert "Transfer-Encoding" not in headers


def test_upload_without_a_name_is_a_usage_error(client, tmp_path):
    with pytest.raises(UsageError, match="give one"):
        client.upload(make_mask(1))
    nameless = tmp_path / "数学.bmt"
    bmt_core.save(make_mask(1), nameless)
    with pytest.raises(UsageError, match="no name can be made"):
        client.upload(nameless)


def test_a_bad_file_is_refused_before_a_byte_is_sent(client, server, tmp_path):
    good = bmt_core.encode(make_mask(1))
    for bad in (b"", b"not a mask", good[:-1], good + b"x"):
        with pytest.raises(Invalid) as caught:
            client.upload(bad, "math")
        assert isinstance(caught.value.__cause__, bmt_core.BmtError)
        assert caught.value.code == caught.value.__cause__.code
    with pytest.raises(UsageError, match="cannot read"):
        client.upload(tmp_path / "absent.bmt")
    assert server.requests == []


@pytest.mark.parametrize("name", ["", "Math", "../x", "a b", "a" * 129, "a..b", "x\n", "маth"])
def test_a_bad_name_is_refused_before_a_byte_is_sent(client, server, name):
    for call in (
        lambda: client.upload(make_mask(1), name),
        lambda: client.upload(make_mask(1), "math", alias=[name]),
        lambda: client.get(name),
        lambda: client.versions(name),
        lambda: client.set_alias("math", name, 1),
        lambda: client.delete(name),
        lambda: client.pin(name),
    ):
        with pytest.raises(Invalid):
            call()
    assert server.requests == []


def test_progress_counts_up_and_restarts_with_a_retry(client, server):
    data = bmt_core.encode(make_mask(1, zeros=3000, layers=100))
    assert len(data) > 65536
    seen: list[tuple[int, int]] = []
    server.faults = [Fault(503)]
    client.upload(data, "math", progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {len(data)}
    starts = [i for i, (done, _) in enumerate(seen) if done == 0]
    assert len(starts) == 2
    last = [done for done, _ in seen[starts[1] :]]
    assert last == sorted(last)
    assert last[-1] == len(data)


def test_the_same_mask_again_changes_nothing(client):
    mask = make_mask(1)
    assert client.upload(mask, "math").changed
    again = client.upload(bmt_core.encode(mask, codec="packbits"), "math")
    assert (again.outcome, again.changed, again.rev) == ("unchanged", False, 1)
    client.upload(make_mask(2), "math")
    back = client.upload(bmt_core.encode(mask, codec="packbits"), "math")
    assert (back.outcome, back.changed, back.rev) == ("moved", True, 3)


def test_compare_and_set(client):
    first = client.upload(make_mask(1), "math", if_none_match=True)
    with pytest.raises(Conflict):
        client.upload(make_mask(2), "math", if_none_match=True)
    second = client.upload(make_mask(2), "math", if_match=first.digest[:12])
    with pytest.raises(Conflict) as caught:
        client.upload(make_mask(3), "math", if_match=first.digest)
    assert (caught.value.status, caught.value.retryable) == (412, False)
    assert client.get("math").digest == second.digest
    with pytest.raises(UsageError):
        client.upload(make_mask(3), "math", if_match=first.digest, if_none_match=True)


def test_a_lost_answer_does_not_turn_success_into_conflict(client, server):
    server.faults = [Fault(drop=True, after=True)]
    found = client.upload(make_mask(1), "math", if_none_match=True)
    assert (found.rev, found.changed) == (1, True)
    server.faults = [Fault(drop=True, after=True)]
    client.delete("math")
    with pytest.raises(NotFound):
        client.delete("math")
    assert client.upload(make_mask(1), "math").rev == 2


def test_a_lost_answer_to_an_alias_move(client, server):
    old = client.upload(make_mask(1), "math")
    client.upload(make_mask(2), "math")
    server.faults = [Fault(drop=True, after=True)]
    moved = client.set_alias("math", "latest", old, if_match=client.get("math").digest)
    # The fault hit the get above; the next one hits the request that moves the alias.
    assert moved.digest == old.digest
    new = client.versions("math")[0]
    current = client.get("math").digest
    server.faults = [Fault(drop=True, after=True)]
    assert client.set_alias("math", "latest", new, if_match=current).digest == new.digest


@pytest.mark.parametrize("answered", [0, 1])
def test_a_lost_answer_to_a_prune_hides_nothing_that_it_removed(client, server, answered):
    digests = [client.upload(make_mask(seed), "math").digest for seed in range(4)]
    server.faults = [*[None] * answered, Fault(drop=True, after=True)]
    assert set(client.prune("math", keep_last=1)) == set(digests[:3])
    assert [version.digest for version in client.versions("math")] == digests[3:]
    assert client.prune("math", keep_last=1) == ()


def test_list_follows_the_pages(client, server):
    names = [f"m{i:03}" for i in range(7)]
    for i, name in enumerate(names):
        client.upload(make_mask(i), name)
    server.requests.clear()
    found = list(client.list(page_size=3))
    assert [mask.name for mask in found] == names
    assert [mask.versions for mask in found] == [1] * 7
    assert len(server.requests) == 3
    # The server's own, smaller page size works as well.
    server.page_limit = 2
    assert [mask.name for mask in client.list(page_size=100)] == names


def test_a_server_without_paging_causes_no_endless_loop(client, server):
    client.upload(make_mask(1), "math")
    page = b'{"data": [{"name": "a", "digest": "d"}], "has_more": true}'
    server.faults = [Fault(200, body=page)] * 10
    with pytest.raises(ProtocolError, match="with itself"):
        list(client.list())


def test_versions_newest_first(client):
    digests = [client.upload(make_mask(i), "math").digest for i in range(3)]
    assert [v.digest for v in client.versions("math")] == digests[::-1]
    assert [v.rev for v in client.versions("math")] == [3, 2, 1]


def test_aliases(client):
    first = client.upload(make_mask(1), "math")
    second = client.upload(make_mask(2), "math")
    for to in (first, first.rev, first.digest, first.digest[:12], first.model, "@" + first.digest):
        client.set_alias("math", "prod", second)
        assert client.set_alias("math", "prod", to).digest == first.digest
        assert client.get("math:prod").digest == first.digest
    assert client.set_alias("math", "eu", "prod").digest == first.digest
    assert client.set_alias("math", "eu", "math").digest == second.digest
    client.upload(make_mask(1), "prose")
    with pytest.raises(UsageError, match="not of math"):
        client.set_alias("math", "eu", "prose:latest")
    with pytest.raises(Conflict):
        client.set_alias("math", "prod", second, if_match=second.digest)
    client.delete_alias("math", "prod")
    with pytest.raises(NotFound):
        client.get("math:prod")


def test_rollback(client):
    first, second, third = (client.upload(make_mask(i), "math") for i in range(3))
    assert client.rollback("math").digest == second.digest
    assert client.rollback("math").digest == first.digest
    with pytest.raises(NotFound, match="no version before"):
        client.rollback("math")
    assert client.rollback("math", third.digest[:12]).digest == third.digest
    assert client.rollback("math", 2).digest == second.digest


def test_delete(client):
    first = client.upload(make_mask(1), "math")
    second = client.upload(make_mask(2), "math")
    client.delete_version("math", first.digest[:12])
    assert [v.digest for v in client.versions("math")] == [second.digest]
    client.delete("math")
    for call in (client.get, client.delete, client.versions, client.read):
        with pytest.raises(NotFound):
            call("math")


def test_download_round_trip(client, tmp_path, monkeypatch):
    data = bmt_core.encode(make_mask(1))
    client.upload(data, "math")
    seen: list[tuple[int, int]] = []
    target = tmp_path / "out.bmt"
    path = client.download("math", target, progress=lambda *at: seen.append(at))
    assert path == target
    assert target.read_bytes() == data
    assert seen[-1] == (len(data), len(data))
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    monkeypatch.chdir(tmp_path)
    assert client.download("math").name == "math.bmt"
    (tmp_path / "folder").mkdir()
    assert client.download("math:latest", "folder").parts == ("folder", "math.bmt")
    assert client.read("math") == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "math.bmt", "out.bmt"]


def test_a_download_that_fails_its_digest_leaves_no_file(client, server, tmp_path):
    found = client.upload(make_mask(1), "math")
    target = tmp_path / "math.bmt"
    target.write_bytes(b"old")
    good = server.blobs[found.file_digest]
    server.blobs[found.file_digest] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(ProtocolError, match="file digest") as caught:
        client.download("math", target)
    assert caught.value.code == "digest_mismatch"
    server.blobs[found.file_digest] = good + b"more than it said"
    with pytest.raises(ProtocolError, match="longer than"):
        client.download("math", target)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["math.bmt"]
    client.upload(make_mask(2), "other")
    with pytest.raises(UsageError, match="cannot write"):
        client.download("other", tmp_path / "absent" / "x.bmt")


def test_an_upload_that_the_server_stored_wrong_is_an_error(client, server):
    server.extra = {"file_digest": hashlib.sha256(b"else").hexdigest()}
    with pytest.raises(ProtocolError, match="file digest"):
        client.upload(make_mask(1), "math")
    server.extra = {"digest": "0" * 64}
    with pytest.raises(ProtocolError, match="mask digest"):
        client.upload(make_mask(2), "math")


def test_pin_models_ready(client, connect):
    client.upload(make_mask(1), "math")
    client.pin("math")
    assert client.get("math").pinned
    client.unpin("math")
    assert not client.get("math").pinned
    assert [(m.id, m.parent) for m in client.models()] == [("base", None), ("math", "base")]
    assert client.ready()
    assert not connect(f"http://127.0.0.1:{free_port()}").ready()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, AuthenticationError),
        (403, PermissionDenied),
        (404, NotFound),
        (409, Conflict),
        (411, Invalid),
        (412, Conflict),
        (413, TooLarge),
        (415, Invalid),
        (422, Invalid),
        (429, RateLimited),
        (500, Unavailable),
        (503, Unavailable),
        (507, Unavailable),
        (301, ProtocolError),
        (418, ProtocolError),
    ],
)
def test_each_status_has_its_exception(connect, server, status, kind):
    body = b'{"error": {"message": "because", "code": "why", "param": "x", "request_id": "r"}}'
    server.faults = [Fault(status, body=body)]
    with pytest.raises(kind, match="because") as caught:
        connect(server.url, max_retries=0).get("math")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id) == (
        status,
        "why",
        "x",
        "req-1",
    )
    assert error.retryable == (status in {429, 500, 503})
    assert error.as_dict()["type"] == kind.__name__


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"[1]", b'{"error": 1}', b"\xff", b"[" * 10_000]
)
def test_answers_of_other_servers_are_protocol_errors(client, server, body):
    server.faults = [Fault(404, body=body)]
    with pytest.raises(NotFound, match="answered 404"):
        client.get("math")
    server.faults = [Fault(200, body=body)]
    with pytest.raises(ProtocolError):
        client.get("math")


def test_wrong_key_and_wrong_scope(connect, server):
    with pytest.raises(AuthenticationError):
        connect(server.url, "bmt_wrong").get("math")
    with pytest.raises(AuthenticationError):
        connect(server.url).get("math")
    server.scopes = {"infer"}
    with pytest.raises(PermissionDenied):
        connect(server.url, KEY).upload(make_mask(1), "math")


def test_no_text_contains_the_key(connect, server):
    wrong = "bmt_secret-of-mine"
    client = connect(server.url, wrong)
    target = getattr(client, "client", client)
    assert wrong not in repr(target) + repr(target._target) + str(vars(target))
    # The fake server echoes the request, as some proxies do.
    with pytest.raises(AuthenticationError) as caught:
        client.get("math")
    error = caught.value
    assert "[key]" in str(error)
    assert wrong not in f"{error!r} {error} {error.as_dict()}"


def test_an_http_client_can_be_given():
    def handle(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        return httpx2.Response(200, json={"name": "math", "digest": "d" * 64, "unknown": 1})

    pool = httpx2.Client(transport=httpx2.MockTransport(handle))
    with BmtClient("http://127.0.0.1:1", KEY, http_client=pool) as client:
        assert client.get("math") == Version(name="math", digest="d" * 64)
    assert not pool.is_closed


def test_openai_returns_the_openai_client(server):
    import openai

    with BmtClient(server.url, KEY) as client:
        client.upload(make_mask(1), "math")
        stock = client.openai()
        assert type(stock) is openai.OpenAI
        chunks = list(
            stock.chat.completions.create(
                model="math", messages=[{"role": "user", "content": "hi"}], stream=True
            )
        )
        assert chunks[0].model.startswith("math@")
        assert client.openai(timeout=3).timeout == 3


def test_a_timeout_is_unavailable(connect):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.05, max_retries=1)
        with pytest.raises(Unavailable, match=r"did not answer within 0\.05 s") as caught:
            client.get("math")
    assert (caught.value.code, caught.value.attempts) == ("timeout", 2)


def test_requests_to_this_machine_bypass_the_proxy(connect, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    assert list(connect(server.url, KEY, max_retries=0).list()) == []


def test_uploads_survive_a_flaky_network_each_exactly_once(client, server):
    chance = random.Random(0)
    data = bmt_core.encode(make_mask(1))
    wrong = [Fault(503), Fault(drop=True), Fault(drop=True, after=True), Fault(502, body=b"")]
    for i in range(200):
        # Each attempt fails with probability 1/4; one of the faults comes after the work is done.
        while chance.random() < 0.25 and len(server.faults) < 4:
            server.faults.append(chance.choice(wrong))
        assert client.upload(data, f"m{i}", if_none_match=True).rev == 1
        server.faults.clear()
    assert set(server.revs.values()) == {1}
    assert len(server.revs) == 200


def test_an_untrusted_certificate_is_named_and_not_retried():
    tries = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        tries.append(request)
        cause = ssl.SSLCertVerificationError()
        cause.verify_message = "self-signed certificate"
        raise httpx2.ConnectError("handshake failed") from cause

    pool = httpx2.Client(transport=httpx2.MockTransport(handle))
    with (
        BmtClient("https://masks.example", KEY, http_client=pool) as client,
        pytest.raises(Unavailable, match="self-signed certificate") as caught,
    ):
        client.get("math")
    assert caught.value.code == "certificate"
    assert len(tries) == 1
