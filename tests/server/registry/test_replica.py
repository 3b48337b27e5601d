"""Replicas read what changed: the work of a change does not grow with a name's versions."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
import redis
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.names.reader import NameReader, versions_key
from bmt_server.registry.names.versions import Entry, Versions
from bmt_server.registry.registry import EVENTS
from bmt_server.registry.replica import RegistryReplica

from tests.support.replica import make_mask, replica
from tests.support.scenarios.full_registry import fill

VERSIONS = 500


class Reads:
    """Counts what replicas read: (names as a whole, versions that were parsed)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole: list[tuple[str, str]] = []
        self.parsed: list[str] = []
        self.scans = 0
        read, parse, pages = NameReader.read, Entry.read, NameReader.pages

        async def counted(reader, wanted, *known):
            self.whole += [key for key, digests in wanted.items() if digests is None]
            return await read(reader, wanted, *known)

        def parsed(digest, text):
            self.parsed.append(digest)
            return parse(digest, text)

        def scanned(reader):
            self.scans += 1
            return pages(reader)

        monkeypatch.setattr(NameReader, "read", counted)
        monkeypatch.setattr(NameReader, "pages", scanned)
        monkeypatch.setattr(Entry, "read", staticmethod(parsed))

    def clear(self) -> None:
        self.whole.clear()
        self.parsed.clear()
        self.scans = 0


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


@pytest.fixture
async def filled(api, valkey):
    """A name of many versions, in the registry that `api` serves."""
    with contextlib.closing(redis.Redis(unix_socket_path=valkey.socket)) as client:
        (name,) = fill(client, 1, VERSIONS)
    await api.state.replica.sync()  # changes without events: the next one would have it read
    return name


async def until(holds, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.found
async def test_a_change_of_a_name_reads_the_version_that_changed(
    api, filled, valkey, tmp_path, reads
):
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        state = await api.state.replica.refresh("default", filled)
        assert len(state.versions) == len(second.state.replica.get("default", filled).versions)
        reads.clear()
        made = (await api.put(filled, make_mask(VERSIONS), params={"alias": "prod"})).json()
        one, two = api.state.replica, second.state.replica
        await until(lambda: made["digest"] in two.get("default", filled).versions)
        async with api.client() as client:
            old = (await client.get(f"/v1/masks/{filled}/versions")).json()["data"][-1]["digest"]
            await client.delete(f"/v1/masks/{filled}/versions/{old}")
            await client.put(f"/v1/masks/{filled}/pin")
            await client.delete(f"/v1/masks/{filled}/aliases/prod")
        for known in (one, two):
            await until(lambda known=known: not known.get("default", filled).aliases)
            state = known.get("default", filled)
            assert len(state.versions) == VERSIONS
            assert (state.latest, state.pinned) == (made["digest"], True)
            assert old not in state.versions
            assert [e.rev for e in state.versions.page(2)] == [VERSIONS + 1, VERSIONS]
    assert reads.whole == []
    # Each replica parses the new version once, and takes it as it is from later reads.
    assert reads.parsed == [made["digest"]] * 2


@pytest.mark.found
async def test_unknown_references_of_a_known_name_do_not_read_all_its_versions(api, filled, reads):
    await api.state.replica.refresh("default", filled)
    reads.clear()
    for model in (f"{filled}:none", f"{filled}@{'0' * 12}"):
        assert (await api.ask(model)).status_code == 404
    assert (reads.whole, reads.parsed) == ([], [])


async def test_a_version_published_elsewhere_is_found_before_its_event(api, filled, reads):
    """By its digest and by an alias, in a replica that gets no events."""
    await api.state.replica.refresh("default", filled)
    await api.state.replica.close()
    quick = api.state.connection.quick
    digest, rev = "ab" * 32, VERSIONS + 1
    key, path = versions_key(f"default/{filled}"), f"{PREFIX}name:default/{filled}"
    text = (await quick.hvals(key))[0].decode()
    _, _, parent, entry = text.split("|", 3)
    entry = entry.replace(entry[entry.index('"digest": "') + 11 :][:64], digest, 1)
    await quick.hset(key, digest, f"{rev}|{rev}|{parent}|{entry}")
    await quick.hset(path, "alias:new", digest)
    reads.clear()
    async with api.client() as client:
        for ref in (f"{filled}@{digest[:12]}", f"{filled}:new"):
            found = (await client.get(f"/v1/masks/{ref}")).json()
            assert (found["digest"], found["rev"]) == (digest, rev)
    assert (reads.whole, set(reads.parsed)) == ([], {digest})


async def test_an_event_of_a_former_build_reads_the_whole_name(api, filled, reads):
    """It does not say what changed."""
    quick, known = api.state.connection.quick, api.state.replica
    await known.refresh("default", filled)
    digest = known.get("default", filled).versions.page(2)[1].digest
    await quick.hdel(versions_key(f"default/{filled}"), digest)
    generation = await quick.incr(f"{PREFIX}generation")
    event = {"where": f"default/{filled}", "kind": "delete", "generation": generation}
    await quick.xadd(EVENTS, event)
    await until(lambda: digest not in known.get("default", filled).versions)
    assert len(known.get("default", filled).versions) == VERSIONS - 1


async def test_pending_events_do_not_cause_a_read_of_all_names(api, reads):
    for seed in range(3):
        assert (await api.put(f"m{seed}", make_mask(seed))).status_code == 201
    known = api.state.replica
    cursor = await api.state.registry.cursor()
    await until(lambda: known._cursor == cursor)
    await known.close()
    async with api.client("admin") as client:
        await client.delete("/v1/masks/m2")
    quick = api.state.connection.quick
    await api.state.registry.delete_name("default", "m1")
    reads.clear()
    await known.sync()
    assert (reads.scans, known.get("default", "m1")) == (0, None)
    # A change without its event: all names are read.
    await quick.delete(f"{PREFIX}versions:default/m0")
    await quick.incr(f"{PREFIX}generation")
    await known.sync()
    assert (reads.scans, known.get("default", "m0")) == (1, None)


async def test_events_that_were_trimmed_before_they_were_read_are_noticed(api):
    """As under a process that stood still; the counter and the last event show nothing then."""
    for seed in range(3):
        await api.put(f"m{seed}", make_mask(seed))
    known, quick = api.state.replica, api.state.connection.quick
    cursor = await api.state.registry.cursor()
    await until(lambda: known._cursor == cursor)
    async with quick.pipeline(transaction=True) as pipe:
        pipe.delete(f"{PREFIX}name:default/m1", versions_key("default/m1"))
        pipe.srem(f"{PREFIX}names", "default/m1")
        pipe.hset(f"{PREFIX}name:default/m2", "pinned", "1")
        for at, name in ((1, "m1"), (2, "m2")):
            event = {"where": f"default/{name}", "kind": "x", "generation": cursor[0] + at}
            pipe.incr(f"{PREFIX}generation")
            pipe.xadd(EVENTS, event)
        pipe.xtrim(EVENTS, maxlen=1, approximate=False)
        await pipe.execute()
    await until(lambda: known.get("default", "m2").pinned)
    await until(lambda: known.get("default", "m1") is None)
    assert known._cursor == await api.state.registry.cursor()


async def test_a_reply_older_than_what_is_known_is_read_again(api, monkeypatch):
    """Two reads of one name cross: each holds only the version that its change was about."""
    first, second = make_mask(1), make_mask(2)
    await api.put("m", make_mask(0))
    await api.state.replica.close()
    known, registry, read = api.state.replica, api.state.registry, NameReader.read
    stale = asyncio.Event()

    async def late(reader, wanted, *more):
        replies = await read(reader, wanted, *more)
        if first.digest in (wanted[("default", "m")] or ()) and not stale.is_set():
            stale.set()
            await api.put("m", second)
        return replies

    monkeypatch.setattr(NameReader, "read", late)
    assert (await api.put("m", first)).status_code == 201
    state = known.get("default", "m")
    assert {first.digest, second.digest} < set(state.versions)
    assert state.latest == second.digest == (await registry.states([("default", "m")]))[0].latest


async def test_reads_that_keep_crossing_leave_the_newest_state(api, monkeypatch):
    """However often: no later event repairs what an old reply has undone."""
    await api.put("m", make_mask(0))
    await api.state.replica.close()
    known, registry, read = api.state.replica, api.state.registry, NameReader.read
    own, masks = make_mask(99), [make_mask(seed) for seed in range(1, 13)]
    left, inside = list(masks), []

    async def late(reader, wanted, *more):
        replies = await read(reader, wanted, *more)
        if not inside and left:
            inside.append(1)
            await api.put("m", left.pop(0))
            inside.clear()
        return replies

    await api.put("m", own)
    monkeypatch.setattr(NameReader, "read", late)
    await known.refresh("default", "m", [own.digest])
    state, (true,) = known.get("default", "m"), await registry.states([("default", "m")])
    assert (state.latest, state.rev, set(state.versions)) == (
        true.latest,
        true.rev,
        set(true.versions),
    )


async def test_a_name_of_a_registry_that_went_back_is_read_as_it_is(api):
    first, second = make_mask(0), make_mask(1)
    await api.put("m", first)
    await api.put("m", second)
    await api.state.replica.close()
    known, quick = api.state.replica, api.state.connection.quick
    await quick.set(f"{PREFIX}generation", 1)
    await quick.hdel(versions_key("default/m"), second.digest)
    await quick.hset(f"{PREFIX}name:default/m", "latest", first.digest)
    async with asyncio.timeout(5):
        state = await known.refresh("default", "m", ())
    assert (state.latest, list(state.versions)) == (first.digest, [first.digest])


async def test_unreadable_entries_hide_no_others(api, valkey, tmp_path, caplog):
    for seed in range(3):
        await api.put(f"m{seed}", make_mask(seed))
    quick = api.state.connection.quick
    await quick.hset(versions_key("default/m0"), make_mask(0).digest, "1|1||{not JSON")
    await quick.hset(versions_key("default/m1"), make_mask(1).digest, b"1|1||\xff\xfe")
    async with replica(valkey.url, tmp_path / "second", api.keys) as second:
        assert [s.name for s in second.state.replica.catalog.page("default", "", 10)] == ["m2"]
        assert (await second.ask("m2")).status_code == 200
    assert caplog.text.count("unreadable") >= 2


def test_versions_by_rev_and_by_digest_follow_changes():
    def entry(digest: str, rev: int) -> Entry:
        return Entry(digest, "", rev, rev, 0, b"", "")

    versions = Versions({d: entry(d, r) for d, r in (("aa1", 1), ("aa2", 2), ("bb1", 3))})
    assert [e.rev for e in versions.page(2)] == [3, 2]
    assert versions.of_prefix("aa") is None
    assert versions.of_prefix("aa2").rev == 2
    versions.put(entry("aa1", 4))
    versions.put(entry("cc1", 5))
    versions.drop("aa2")
    assert [e.digest for e in versions.page(10)] == ["cc1", "aa1", "bb1"]
    assert [e.digest for e in versions.page(1, before=5)] == ["aa1"]
    assert versions.of_prefix("aa").rev == 4
    assert versions.of_prefix("aa2") is None
    assert (versions.of_rev(1), versions.of_rev(5).digest) == (None, "cc1")


async def test_a_first_read_of_all_names_stands_back_behind_newer_ones(api, monkeypatch):
    """A request reads a name while its reply to the read of all names is on its way."""
    for seed in range(3):
        await api.put(f"m{seed}", make_mask(seed))
    await api.state.replica.close()
    registry, read = api.state.registry, NameReader.read
    known = RegistryReplica(
        registry,
        on_change=lambda key, state: None,
        on_keys_change=lambda: None,
        on_connection=lambda connected: None,
    )
    newer = make_mask(10).digest

    async def read_and_cross(self, wanted, known_versions):
        replies = await read(self, wanted, known_versions)
        if len(wanted) == 3:
            monkeypatch.undo()
            assert (await api.put("m1", make_mask(10))).status_code == 201
            await known.refresh("default", "m1", [newer])
        return replies

    monkeypatch.setattr(NameReader, "read", read_and_cross)
    await known.sync()
    assert [len(known.get("default", f"m{i}").versions) for i in range(3)] == [1, 2, 1]
    assert known.get("default", "m1").latest == newer


def test_an_entry_is_read_whatever_its_metadata_holds():
    """NaN, which the standard library writes and JSON does not have, and half of a character."""
    fields = {"created": "2026-11-01T10:00:00.000+00:00", "file_digest": "ab" * 32}
    fields["base"] = {"fingerprint": "f"}
    for metadata in ({"loss": float("nan")}, {"note": "\ud800"}, {"note": "Größe 数"}):
        for ascii_only in (True, False):
            text = json.dumps({**fields, "metadata": metadata}, ensure_ascii=ascii_only)
            entry = Entry.read("cd" * 32, f"2|7||{text}")
            assert (entry.rev, entry.id, entry.fingerprint) == (2, 7, "f")
    assert Entry.read("cd" * 32, "2|7||{}") is None
