"""Moves of blobs between Redis and an object store, while servers publish, read and delete."""

from __future__ import annotations

import asyncio
import json
import shutil

import bmt_core
import pytest
from bmt_server.cli.main import app
from bmt_server.errors import Unavailable
from bmt_server.ipc.blob import blob_key
from bmt_server.ipc.object_store import ObjectStore
from bmt_server.registry.blobs.in_objects import ObjectBlobs
from bmt_server.registry.blobs.in_redis import RedisBlobs
from bmt_server.registry.blobs.moving import Mover, sweep, whereabouts
from bmt_server.registry.blobs.place import OWNER, PLACE
from bmt_server.registry.maintenance import check_consistency, collect_orphans
from typer.testing import CliRunner

from tests.support.blobs.places import damage, places
from tests.support.replica import make_mask

pytestmark = pytest.mark.redis


@pytest.fixture(params=["file", "s3"])
def place(request, place_of):
    return place_of(request.param)


def mover(api, place: str) -> Mover:
    return Mover(api.state.connection, place, read_s=0)


async def test_blobs_move_out_and_back_under_traffic(open_replica, place):
    async with open_replica("") as before:
        for seed in range(20):
            await before.put(f"m{seed}", make_mask(seed))
    async with open_replica(place) as writer, open_replica(place) as reader:
        stop, published, reads = asyncio.Event(), {}, 0

        async def publish(lane: int):
            number = 0
            while not stop.is_set():
                seed = 1000 * lane + number % 7
                answer = await writer.put(f"busy{lane}", make_mask(seed))
                assert answer.status_code in (200, 201), answer.text
                published[f"busy{lane}"] = answer.json()["digest"]
                if number % 5 == 4:
                    async with writer.client() as client:
                        await client.delete(f"/v1/masks/busy{lane}")
                number += 1

        async def read():
            nonlocal reads
            while not stop.is_set():
                seed = reads % 20
                data = bmt_core.encode(make_mask(seed))
                async with reader.client() as client:
                    answer = await client.get(f"/v1/blobs/{bmt_core.file_digest(data)}")
                assert answer.status_code == 200, answer.text
                assert answer.content == data
                reads += 1

        traffic = [asyncio.create_task(t) for t in (publish(1), publish(2), read())]
        out = await mover(reader, place).out()
        assert out.damaged == ()
        assert (await places(writer))[0] == 0
        await asyncio.sleep(0.3)
        at_place = (await places(writer))[1]
        assert at_place >= 20
        back = await mover(reader, place).back()
        assert back.damaged == ()
        await asyncio.sleep(0.3)
        again = await mover(reader, place).out(force=True)
        assert again.blobs >= 20
        stop.set()
        await asyncio.gather(*traffic)
        assert reads > 20
        report = await check_consistency(reader.state.registry)
        assert report.problems == []
        for seed in range(20):
            assert (await reader.ask(f"m{seed}")).status_code == 200


async def test_a_move_may_end_at_any_point_and_be_run_again(open_replica, place):
    async with open_replica("") as before:
        for seed in range(9):
            await before.put(f"m{seed}", make_mask(seed))
    async with open_replica(place) as one:
        for way in ("out", "back"):
            for after in (1, 5):
                moved = 0

                def killed(report, limit=after):
                    nonlocal moved
                    moved += 1
                    if moved >= limit:
                        raise asyncio.CancelledError

                broken = Mover(one.state.connection, place, killed, read_s=0)
                with pytest.raises(asyncio.CancelledError):
                    await getattr(broken, way)()
                assert (await check_consistency(one.state.registry)).problems == []
            await getattr(mover(one, place), way)()
            found = await whereabouts(one.state.connection)
            assert (found.in_redis, found.in_objects) == ((0, 9) if way == "out" else (9, 0))
            assert (await check_consistency(one.state.registry)).problems == []
        assert await places(one) == (9, 0)
        # An object store that could not be asked at the end may still have the id.
        assert await one.state.connection.quick.hkeys(PLACE) == [b"id"]
        # Servers of Redis alone may start again.
        async with open_replica("") as after_all:
            assert (await after_all.ask("m0")).status_code == 200


async def test_a_check_while_blobs_move_misses_none(open_replica, place, monkeypatch):
    """Records of objects are read, then all blobs leave Redis, then Redis is asked."""
    async with open_replica("") as before:
        await before.put("m", make_mask(0))
    async with open_replica(place) as one:
        original, moved = RedisBlobs.sizes, []

        async def sizes(self, digests):
            if not moved:
                moved.append(True)
                await mover(one, place).out()
            return await original(self, digests)

        monkeypatch.setattr(RedisBlobs, "sizes", sizes)
        assert (await check_consistency(one.state.registry)).problems == []
        assert moved
        found = await whereabouts(one.state.connection)
        assert (found.in_redis, found.in_objects) == (0, 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_look_at_the_place_while_it_is_left_locks_no_registry_out(
    open_replica, place, empty, monkeypatch, when
):
    """A collection compares the owner of the place at the end of a move to Redis."""
    async with open_replica(place) as one:
        await one.put("m", make_mask(0))
        look = ObjectBlobs(one.state.connection, ObjectStore(place)).find_strays

        def watch(method: str) -> None:
            original, seen = getattr(ObjectStore, method), []

            async def watched(store, names, *rest):
                first = OWNER in names and not seen
                seen.extend([OWNER] if OWNER in names else [])
                if first and when == "before":
                    await look()
                await original(store, names, *rest)
                if first and when == "after":
                    await look()

            monkeypatch.setattr(ObjectStore, method, watched)

        watch("put")
        watch("delete")
        assert (await mover(one, place).back()).blobs == 1
        await mover(one, place).out(force=True)
        assert (await one.put("n", make_mask(1))).status_code == 201
        assert await places(one) == (0, 2)
        await mover(one, place).back()
    # Another registry may have the place then.
    async with open_replica(place, registry_url=f"{empty[0]}?prefix=second") as second:
        await second.state.registry.blobs.open()
        assert await places(second) == (0, 0)


async def test_damaged_blobs_stay_where_they_are_and_are_named(open_replica, place):
    async with open_replica("") as before:
        for seed in range(3):
            await before.put(f"m{seed}", make_mask(seed))
    async with open_replica(place) as one:
        bad = bmt_core.file_digest(bmt_core.encode(make_mask(1)))
        await damage(one, bad, "flip")
        report = await mover(one, place).out()
        assert (report.blobs, report.damaged) == (2, (bad,))
        assert await places(one) == (1, 2)
        (problem,) = (await check_consistency(one.state.registry)).problems
        assert problem.code == "blob_damaged"
        # As its fix says.
        assert (await one.put("m1", make_mask(1))).status_code in (200, 201)
        assert (await check_consistency(one.state.registry)).problems == []
        assert await places(one) == (0, 3)


async def test_an_upload_to_a_server_of_a_former_build_is_served_and_swept(open_replica, place):
    """It writes to Redis, because it does not know of another place."""
    async with open_replica(place) as new:
        mask = make_mask(0)
        await new.put("m", mask)
        data = bmt_core.encode(mask)
        digest = bmt_core.file_digest(data)
        # What PUBLISH of a former build leaves: the same version, with its bytes in Redis.
        quick = new.state.connection.quick
        await quick.set(blob_key(digest), data)
        await new.state.registry.blobs.store.delete(
            [
                name
                async for page in new.state.registry.blobs.store.pages()
                for name in page
                if name.startswith("blobs/")
            ]
        )
        await quick.delete("{bmt}:objects")
        async with open_replica(place) as other:
            assert (await other.ask("m")).status_code == 200
        assert (await check_consistency(new.state.registry)).problems == []
        await sweep(new.state.connection, new.state.registry.blobs)
        assert await places(new) == (0, 1)
        assert (await check_consistency(new.state.registry)).problems == []


async def test_a_move_that_no_server_can_follow_is_refused(open_replica, place):
    async with open_replica("") as one:
        await one.put("m", make_mask(0))
        with pytest.raises(Unavailable, match="--force"):
            await mover(one, place).out()
        assert await places(one) == (1, 0)
        assert (await mover(one, place).out(force=True)).blobs == 1
        async with one.client() as client:
            digest = bmt_core.file_digest(bmt_core.encode(make_mask(0)))
            answer = await client.get(f"/v1/blobs/{digest}")
            asked = await client.head(f"/v1/blobs/{digest}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blobs_elsewhere")
        assert asked.status_code == 503


async def test_commands(open_replica, place, empty):
    runner, url = CliRunner(), empty[0]

    async def run(*arguments: str, code: int = 0):
        done = await asyncio.to_thread(runner.invoke, app, [*arguments, "--registry", url])
        assert done.exit_code == code, done.output
        return done.output

    async with open_replica("") as before:
        for seed in range(3):
            await before.put(f"m{seed}", make_mask(seed))
    assert "3 blobs in Redis, 0 objects" in await run("blobs", "show")
    assert "--force" in await run("blobs", "move", place, code=1)
    async with open_replica(place) as one:
        assert json.loads(await run("blobs", "move", place, "--json"))["blobs"] == 3
        shown = json.loads(await run("blobs", "show", "--json"))
        assert shown == {"url": place, "writes": place, "in_redis": 0, "in_objects": 3, "loose": 0}
        # Neither needs to be given the place.
        assert "3 versions, 3 blobs" in await run("fsck")
        async with one.client() as client:
            await client.delete("/v1/masks/m0")
        assert "1 removed" in await run("gc", "--min-age", "0")
        assert await places(one) == (0, 2)
    assert "must have the form" in await run("blobs", "move", "ftp://x", code=1)


async def test_a_command_names_the_cause_of_a_store_that_does_not_answer(empty, tmp_path):
    """Its user is the operator, who has no other log of it."""
    (tmp_path / "file").write_text("no folder")
    command = ["blobs", "move", f"file://{tmp_path}/file/x", "--force", "--registry", empty[0]]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 1
    assert f"file://{tmp_path}/file/x: " in done.output


async def test_a_backup_of_both_is_a_complete_registry(open_replica, place_of, empty, tmp_path):
    """Redis first, then the objects: those of versions deleted meanwhile are kept for an hour."""
    url = place_of("file")
    folder = url.removeprefix("file://")
    async with open_replica(url) as one:
        for seed in range(4):
            await one.put(f"m{seed}", make_mask(seed))
        quick = one.state.connection.quick
        dump = {key: await quick.dump(key) for key in await quick.keys("{bmt}:*")}
        async with one.client() as client:
            for seed in range(2):
                await client.delete(f"/v1/masks/m{seed}")
        await one.put("later", make_mask(9))
        await collect_orphans(one.state.registry)
        await collect_orphans(one.state.registry)
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        await quick.flushall()
        for key, value in dump.items():
            await quick.restore(key, 0, value)
    shutil.rmtree(folder)
    there = f"file://{copy}"
    with pytest.raises(Unavailable):
        async with open_replica(there):
            pass
    runner = CliRunner()
    arguments = ["blobs", "move", there, "--copied", "--registry", empty[0]]
    done = await asyncio.to_thread(runner.invoke, app, arguments)
    assert done.exit_code == 0, done.output
    async with open_replica(there) as restored:
        report = await check_consistency(restored.state.registry)
        assert (report.versions, report.problems) == (4, [])
        for seed in range(4):
            assert (await restored.ask(f"m{seed}")).status_code == 200
