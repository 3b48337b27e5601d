"""The one place of a registry's blobs: servers with another one are refused, in one line."""

from __future__ import annotations

import asyncio
import http.server
import logging
import threading
from pathlib import Path

import pytest
from bmt_server.cli.first_key import check_place, contact_registry
from bmt_server.cli.main import app
from bmt_server.errors import BlobsDown, Unavailable
from bmt_server.ipc.object_store import ObjectStore, parse_place
from bmt_server.registry.blobs.in_objects import ObjectBlobs
from bmt_server.registry.blobs.place import (
    OWNER,
    PLACE,
    RELEASED,
    join,
    owner_of,
    write_owner,
)
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.maintenance import collect_orphans
from bmt_server.registry.registry import Registry
from bmt_server.settings import SettingsError
from typer.testing import CliRunner

from tests.support.blobs.object_store import CREDENTIALS
from tests.support.blobs.places import places
from tests.support.replica import make_mask

pytestmark = pytest.mark.redis


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:p4ss@bucket/p",
        "s3://bucket/p?aws_secret_access_key=p4ss",
        "s3://bucket/../p4ss",
        "s3://bucket:9000/p4ss",
        "s3://bucket:p4ss",
        "s3://[p4ss",
        "s3://[p4ss]/x",
        "s3://bucket/%2e%2e/p4ss",
        "s3:///p4ss",
        "file://host/p4ss",
        "file:///",
        "http://bucket/p4ss",
        "redis://p4ss",
        "p4ss",
        "",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match=r"place of blobs|folder for blobs") as refused:
        parse_place(url)
    with pytest.raises(SettingsError, match=r"^--blobs: ") as of_flag:
        check_place(url)
    assert "p4ss" not in str(refused.value) + str(of_flag.value)


@pytest.mark.parametrize(
    ("url", "one"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a//b/", "s3://bucket/a/b"),
        ("gs://bucket/p/", "gs://bucket/p"),
        ("az://container/p", "az://container/p"),
        (" file:///var/masks/ ", "file:///var/masks"),
        ("FILE:///var/masks", "file:///var/masks"),
    ],
)
def test_one_place_has_one_spelling(url, one):
    assert parse_place(url) == one


@pytest.mark.parametrize("spelled", ["file://{}/new", " file://{}/new/", "FILE://{}/new"])
async def test_each_spelling_of_a_folder_stores_there(spelled, tmp_path):
    await ObjectStore(spelled.format(tmp_path)).put("a", b"1")
    assert (tmp_path / "new" / "a").read_bytes() == b"1"


async def test_servers_of_another_place_are_refused(open_replica, place_of, empty):
    url, other = place_of("file"), place_of("file")
    async with open_replica(url) as first:
        await first.put("m", make_mask(0))
        async with open_replica(url + "/") as same:
            assert (await same.ask("m")).status_code == 200
        for wrong in (other, ""):
            with pytest.raises(Unavailable, match=url) as refused:
                async with open_replica(wrong):
                    pass
            assert refused.value.code == "blobs_elsewhere"
            assert "\n" not in str(refused.value)
    # The same at the command line, before a model is loaded.
    with pytest.raises(SettingsError, match=url):
        await asyncio.to_thread(contact_registry, empty[0], None, no_auth=True, blobs=other)


async def test_a_place_of_another_registry_is_refused(open_replica, place_of):
    url = place_of("file")
    store = ObjectStore(url)
    await store.put(OWNER, b'{"registry": "of somebody else"}')
    with pytest.raises(Unavailable, match="another registry") as refused:
        async with open_replica(url):
            pass
    assert refused.value.code == "blobs_elsewhere"


@pytest.mark.parametrize("kind", ["file", "s3"])
@pytest.mark.parametrize("left", [False, True])
async def test_of_registries_that_open_a_place_at_once_one_has_it(place_of, empty, kind, left):
    """A new place, and one that another registry has moved away from."""
    url, all_read = place_of(kind), asyncio.Barrier(3)
    if left:
        await write_owner(ObjectStore(url), RELEASED)

    class Store(ObjectStore):
        """All have read that the place has no owner; then one after the other writes and looks."""

        async def swap(self, name, data, expected):
            await asyncio.sleep(0.2 * await all_read.wait())
            return await super().swap(name, data, expected)

    async def opened(number: int) -> ObjectBlobs | None:
        connection = RegistryConnection(f"{empty[0]}?prefix=at-once-{number}")
        connections.append(connection)
        blobs = ObjectBlobs(connection, Store(url))
        try:
            await blobs.open()
        except Unavailable as error:
            refusals.append(error.code)
            return None
        return blobs

    connections: list[RegistryConnection] = []
    refusals: list[str] = []
    found = await asyncio.gather(*(opened(number) for number in range(3)))
    (first,) = (blobs for blobs in found if blobs is not None)
    assert refusals == ["blobs_elsewhere"] * 2
    # It stays the owner, and what the others look for is not there.
    assert await first.find_strays() == 0
    assert await owner_of(ObjectStore(url)) == (await join(first._connection, url)).id
    for connection in connections:
        await connection.quick.flushdb()
        await connection.close()


async def test_a_registry_never_removes_the_objects_of_another_one(open_replica, place_of, empty):
    """A second registry on the same Redis is started with the first one's place by mistake."""
    url, second = place_of("file"), f"{empty[0]}?prefix=second"
    async with open_replica(url) as first:
        await first.put("m", make_mask(0))
        with pytest.raises(Unavailable, match="another registry"):
            async with open_replica(url, registry_url=second):
                pass
        connection = RegistryConnection(second)
        # As it was recorded by a server that ended before it compared the owner.
        fields = {"url": url, "writes": url, "id": "of the second", "claimed": "1"}
        for claimed in (False, True):
            await connection.quick.delete(PLACE)
            recorded = {k: v for k, v in fields.items() if k != "claimed" or claimed}
            await connection.quick.hset(PLACE, mapping=recorded)
            with pytest.raises(Unavailable, match="another registry"):
                await collect_orphans(await Registry.recorded(connection), min_age_s=0, strays=True)
        await connection.close()
        assert await places(first) == (0, 1)


@pytest.mark.parametrize("wrong", ["of another registry", "without an answer"])
@pytest.mark.parametrize("right", ["file", "redis"])
async def test_a_mistyped_place_binds_no_registry(open_replica, place_of, empty, wrong, right):
    mistyped, place = f"{place_of('file')}/a", place_of(right)
    folder = Path(mistyped.removeprefix("file://"))
    if wrong == "without an answer":
        folder.parent.write_text("no folder")
        async with open_replica(mistyped):
            pass
        if right == "redis":
            runner, command = CliRunner(), ["blobs", "move", "redis", "--registry", empty[0]]
            assert (await asyncio.to_thread(runner.invoke, app, command)).exit_code == 0
    else:
        await ObjectStore(mistyped).put(OWNER, b'{"registry": "of somebody else"}')
        with pytest.raises(Unavailable, match="another registry"):
            async with open_replica(mistyped):
                pass
    async with open_replica(place) as one:
        assert (await one.put("m", make_mask(0))).status_code == 201
        assert await places(one) == ((0, 1) if place else (1, 0))
        if place:  # the first mask binds it
            with pytest.raises(Unavailable, match=place):
                async with open_replica(mistyped):
                    pass


async def test_the_first_of_two_places_wins_that_a_registry_is_started_with(
    open_replica, place_of, empty
):
    """Both servers have looked at the record before either of them has written to its place."""
    blobs = [ObjectBlobs(RegistryConnection(empty[0]), ObjectStore(place_of("file"))) for _ in "ab"]
    for one in blobs:
        await one.check()
    await blobs[1].open()
    with pytest.raises(Unavailable, match="was started with --blobs"):
        await blobs[0].open()
    for one in blobs:
        await one._connection.close()


async def test_a_place_that_lost_its_content_takes_no_uploads(open_replica, place_of):
    """As a folder that is not mounted after a reboot."""
    url = place_of("file")
    async with open_replica(url) as one:
        await one.put("m", make_mask(0))
    await ObjectStore(url).delete([OWNER])
    with pytest.raises(Unavailable, match="not mounted") as refused:
        async with open_replica(url):
            pass
    assert refused.value.code == "blobs_lost"


async def test_a_registry_with_masks_goes_on_in_redis_until_they_are_moved(
    open_replica, place_of, empty, capsys
):
    url = place_of("file")
    async with open_replica("") as old:
        await old.put("m", make_mask(0))
        async with open_replica(url) as new:
            assert (await new.ask("m")).status_code == 200
            await new.put("n", make_mask(1))
            assert await places(new) == (2, 0)
            # A replica of before the change, which starts again during a rolling update.
            async with open_replica("") as late:
                assert (await late.ask("n")).status_code == 200
    await asyncio.to_thread(contact_registry, empty[0], None, no_auth=True, blobs=url)
    assert f"bmt-server blobs move {url}" in capsys.readouterr().err


async def test_a_server_without_the_place_answers_503_and_takes_no_uploads(open_replica, place_of):
    """One that runs while the blobs move away."""
    url = place_of("file")
    async with open_replica("") as redis_alone:
        await redis_alone.state.connection.quick.hset(
            PLACE, mapping={"url": url, "writes": url, "id": "0"}
        )
        answer = await redis_alone.put("n", make_mask(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blobs_elsewhere")
        assert answer.headers["retry-after"]
        async with redis_alone.client() as client:
            assert (await client.get("/v1/masks/n")).status_code == 404


async def test_credentials_are_in_no_message(monkeypatch, caplog):
    """A store that refuses them quotes them in its answer."""
    secret, key = CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_ACCESS_KEY_ID"]

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>X</Code><AWSAccessKeyId>{key}</AWSAccessKeyId>{secret}</Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    store = ObjectStore("s3://masks/p")
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(BlobsDown) as refused:
            await store.get("x")
    finally:
        server.shutdown()
        server.server_close()
    assert refused.value.code == "blobs_refused"
    said = f"{refused.value} {refused.value.detail} {store!r} {caplog.text}"
    assert secret not in said
    assert key not in said
