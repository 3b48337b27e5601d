"""Records of keys: any text of an expiry, damaged records, keys of the environment, old servers."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from bmt_server.api.keys.rights import check_change
from bmt_server.cli.doctor import _keys
from bmt_server.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthorized
from bmt_server.registry.api_keys import SCOPES, make_key
from bmt_server.registry.keys import writer
from bmt_server.registry.keys.expiry import parse_expiry, read_expiry
from bmt_server.registry.keys.reader import KEYS
from bmt_server.registry.keys.record import KeyRecord, read_record
from bmt_server.registry.keys.secret import hash_key
from bmt_server.registry.keys.writer import ENVIRONMENT_LABEL
from bmt_server.registry.schemas import Principal
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
_ZONES = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
_TIMES = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.none() | _ZONES)
_TEXTS = st.one_of(
    _TIMES.map(lambda t: t.isoformat()),
    _TIMES.map(lambda t: t.isoformat(sep=" ", timespec="minutes")),
    _TIMES.map(lambda t: t.strftime("%Y%m%dT%H%M%SZ")),
    st.from_regex(r"-?[0-9]{0,7}[smhdwy]?", fullmatch=True),
    st.text(max_size=40),
)


@given(_TEXTS)
def test_an_expiry_is_a_time_to_come_in_utc_or_refused(text):
    """And it reads back as the time that was meant, to a second."""
    try:
        stored = parse_expiry(text, NOW)
    except BadRequest:
        return
    at = read_expiry(stored)
    assert at is not None
    assert at.utcoffset() == timedelta(0)
    assert at >= NOW
    # Servers of former versions compare texts.
    assert len(stored) == len(NOW.isoformat(timespec="seconds"))
    assert stored.endswith("+00:00")
    unit = {"m": 60, "h": 3600, "d": 86400, "w": 604800}.get(text.strip()[-1:], 0)
    if unit and text.strip()[:-1].isdigit():
        meant = NOW + timedelta(seconds=unit * int(text.strip()[:-1]))
    else:
        meant = datetime.fromisoformat(text.strip())
    assert abs((at - meant).total_seconds()) < 1


@given(_TEXTS | st.none() | st.integers() | st.booleans())
def test_a_stored_expiry_that_is_no_time_is_never_eternal(stored):
    raw = {"key_id": "k", "tenant": "default", "scopes": ["infer"], "label": "", "created": "x"}
    record = read_record("f" * 64, json.dumps({**raw, "expires": stored}).encode())
    if stored is None:
        assert record.status == "active"
        return
    at = read_expiry(str(stored))
    assert record.status == (
        "unreadable" if at is None else "active" if at > datetime.now(UTC) else "expired"
    )


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_any_bytes_are_a_record_that_gives_nothing(data):
    record = read_record("f" * 64, data)
    assert (record.scopes, record.status) == ((), "unreadable")


def test_words_of_scopes_keep_the_meaning_that_they_had():
    """For each set of scopes: stored and read again, and by a server that knows no `promote`."""
    for size in range(1, len(SCOPES) + 1):
        for scopes in itertools.combinations(SCOPES, size):
            record = KeyRecord("k", "t", scopes, "", "now")
            text = record.to_json()
            assert set(read_record("f" * 64, text.encode()).scopes) == set(scopes)
            stored = json.loads(text)
            # Former versions take exactly these fields.
            assert set(stored) == {"key_id", "tenant", "scopes", "label", "created", "expires"}
            may_move_aliases = "upload" in stored["scopes"] or "admin" in stored["scopes"]
            if may_move_aliases and "admin" not in scopes:
                assert {"upload", "promote"} <= set(scopes)
            assert set(stored["scopes"]) - {"publish"} <= set(scopes)
    # A key that a former version made keeps what it could do.
    before = json.dumps({**json.loads(text), "scopes": ["infer", "upload"]})
    assert set(read_record("f" * 64, before.encode()).scopes) == {"infer", "upload", "promote"}


async def refused(store, key):
    store.invalidate()
    with pytest.raises(Unauthorized):
        await store.verify(key)
    return True


@pytest.mark.found
async def test_a_revoked_key_of_the_environment_stays_revoked(store):
    """Also by a server of a former version, which stores what it does not find."""
    key, quick = make_key(("admin",)), store._connection.quick
    assert await store.import_environment_key(key) == "stored"
    assert await store.import_environment_key(key) == "known"
    (record,) = await store.records()
    assert set(record.scopes) == set(SCOPES)
    await store.revoke(record.key_id)
    assert await store.import_environment_key(key) == "revoked"
    assert await refused(store, key)
    assert await store.records() == []
    former = KeyRecord("k", "default", ("admin",), ENVIRONMENT_LABEL, "x").to_json()
    assert not await quick.hsetnx("{bmt}:keys", hash_key(key), former)
    # A former version's `keys revoke` removes the record.
    other = make_key(("admin",))
    await store.import_environment_key(other)
    await quick.hdel("{bmt}:keys", hash_key(other))
    assert await store.import_environment_key(other) == "revoked"
    # One that was made otherwise, and that the environment names later.
    made, record = await store.create(("infer",))
    assert await store.import_environment_key(made) == "known"
    await store.revoke(record.key_id)
    assert await store.import_environment_key(made) == "revoked"


async def test_a_rotated_key_of_the_environment_ends(store):
    key = make_key(("admin",))
    await store.import_environment_key(key)
    (record,) = await store.records()
    made = await store.rotate(record.key_id, overlap_s=0)
    assert await store.import_environment_key(key) == "known"
    assert await refused(store, key)
    assert (await store.verify(made.secret)).may("operator")


async def test_a_key_of_the_environment_that_a_former_version_stored_gets_its_scopes(store):
    key, quick = make_key(("admin",)), store._connection.quick
    former = ("priority", "infer", "upload", "admin")
    record = KeyRecord("k", "default", former, ENVIRONMENT_LABEL, "2026-01-01T00:00:00+00:00")
    stored = json.loads(record.to_json()) | {"scopes": former}
    await quick.hset("{bmt}:keys", hash_key(key), json.dumps(stored))
    assert not (await store.verify(key)).may("operator")
    assert await store.import_environment_key(key) == "known"
    store.invalidate()
    assert (await store.verify(key)).may("operator")
    # No other record is touched.
    made, record = await store.create(("admin",))
    await store.import_environment_key(made)
    store.invalidate()
    assert not (await store.verify(made)).may("operator")


async def test_a_first_key_is_made_once_no_key_is_left(store):
    first = await store.create(SCOPES, only_if_first=True)
    assert first is not None
    assert await store.create(SCOPES, only_if_first=True) is None
    await store.revoke(first[1].key_id)
    key = make_key(("admin",))
    await store.import_environment_key(key)
    assert await store.create(SCOPES, only_if_first=True) is None
    (record,) = await store.records()
    await store.revoke(record.key_id)
    assert await store.create(SCOPES, only_if_first=True) is not None


async def test_damaged_records_are_listed_and_can_be_revoked(store, caplog):
    """They neither stop the list nor the look-ups of other keys."""
    quick, (good, _) = store._connection.quick, await store.create(("infer",))
    bad = make_key(("infer",))
    for value in (b"", b"\xff", b"[]", b"null", b'{"key_id": "x"}', b'{"scopes": 5}'):
        await quick.hset("{bmt}:keys", hash_key(bad), value)
        assert await refused(store, bad)
        await store.refresh()
        assert (await store.verify(good)).scopes == {"infer"}
        (record,) = [r for r in await store.records() if r.status != "active"]
        await store.revoke(record.key_id)
        assert not await quick.hexists("{bmt}:keys", hash_key(bad))


async def test_a_field_of_a_later_version_is_left_out(store):
    key, quick = make_key(("infer",)), store._connection.quick
    text = KeyRecord("k", "default", ("infer",), "", "2026-01-01T00:00:00+00:00").to_json()
    later = {**json.loads(text), "color": "red", "scopes": ["infer", "paint"]}
    await quick.hset("{bmt}:keys", hash_key(key), json.dumps(later))
    principal = await store.verify(key)
    assert principal.may("infer")
    assert not principal.may("upload")


async def test_two_rotations_at_once_prolong_nothing(store):
    """Both answers name the end of the old key, which no second rotation prolongs."""
    _, record = await store.create(("infer",))
    made = await asyncio.gather(
        *(store.rotate(record.key_id, overlap_s=60) for _ in range(2)), return_exceptions=True
    )
    ends = [one.old.expires for one in made if not isinstance(one, Exception)]
    assert ends
    limit = datetime.now(UTC) + timedelta(seconds=61)
    assert all(datetime.fromisoformat(end) <= limit for end in ends)


async def test_a_scope_of_a_later_version_is_nobodys_to_give(store):
    """An administrator does not rotate a key that may what this version does not know."""
    key, quick = make_key(("infer",)), store._connection.quick
    text = KeyRecord("k", "default", ("infer",), "", "2026-01-01T00:00:00+00:00").to_json()
    later = json.dumps({**json.loads(text), "scopes": ["infer", "paint"]})
    await quick.hset("{bmt}:keys", hash_key(key), later)
    (record,) = await store.records()
    with pytest.raises(Forbidden):
        check_change(Principal("a", "default", frozenset({"admin"})), record)
    check_change(Principal("o", "default", frozenset({"operator"})), record)
    made = await store.rotate("k")
    assert made.new.scopes == record.scopes
    alone = json.dumps({**json.loads(text), "scopes": ["paint"]})
    await quick.hset("{bmt}:keys", hash_key(key), alone)
    with pytest.raises(BadRequest):
        await store.rotate("k")


@pytest.mark.found
async def test_the_doctor_names_keys_that_are_refused(store, valkey):
    await store.create(("infer",))
    found = await asyncio.to_thread(_keys, valkey.url)
    assert (found.verdict, found.value) == ("ok", "1, all readable")
    text = KeyRecord("old", "default", ("infer",), "", "2026-01-01T00:00:00+00:00", "30d")
    await store._connection.quick.hset("{bmt}:keys", "f" * 64, text.to_json())
    found = await asyncio.to_thread(_keys, valkey.url)
    assert found.verdict == "warn"
    assert "old" in found.value
    assert "'30d'" in found.value


async def test_an_id_is_of_one_key(store, monkeypatch):
    """By it a key is revoked, limited and counted: a second key takes another id, or is refused."""
    ids = iter(["a" * 16, "a" * 16, "b" * 16, "a" * 16, "c" * 16, *["b" * 16] * 9])
    monkeypatch.setattr(writer, "new_id", lambda: next(ids))
    first = await store.create(("infer",))
    second = await store.create(("infer",))
    rotated = await store.rotate("a" * 16, overlap_s=0)
    assert [made[1].key_id for made in (first, second)] == ["a" * 16, "b" * 16]
    assert rotated.new.key_id == "c" * 16
    with pytest.raises(Conflict) as refused:
        await store.create(("infer",))
    assert refused.value.code == "key_id_taken"
    with pytest.raises(Conflict):
        await store.import_key(make_key(SCOPES))
    assert sorted(r.key_id for r in await store.records()) == ["a" * 16, "b" * 16, "c" * 16]
    # An id of a key that was revoked is free.
    await store.revoke("b" * 16)
    assert (await store.create(("infer",)))[1].key_id == "b" * 16


async def test_racing_creations_of_one_id_make_one_key(store, monkeypatch):
    monkeypatch.setattr(writer, "new_id", lambda: "d" * 16)
    made = await asyncio.gather(
        *(store.create(("infer",)) for _ in range(8)), return_exceptions=True
    )
    assert len([one for one in made if isinstance(one, tuple)]) == 1
    assert len([one for one in made if isinstance(one, Conflict)]) == 7
    assert len(await store.records()) == 1


async def test_ids_are_of_64_bits(store):
    made = [(await store.create(("infer",)))[1].key_id for _ in range(3)]
    assert all(len(bytes.fromhex(one)) == 8 for one in made)


@pytest.mark.found
async def test_a_revocation_ends_all_keys_of_an_id_that_former_versions_gave_twice(store):
    """They made ids of 32 bits without a look at others, and revoked one of them."""
    secrets = [make_key(("infer",)) for _ in range(3)]
    for secret, tenant in zip(secrets, ("default", "default", "acme"), strict=True):
        record = KeyRecord("1a2b3c4d", tenant, ("infer",), "", "2026-01-01T00:00:00+00:00")
        await store._connection.quick.hset(KEYS, hash_key(secret), record.to_json())
        assert (await store.verify(secret)).tenant == tenant
    with pytest.raises(Conflict) as refused:
        await store.rotate("1a2b3c4d")
    assert refused.value.code == "key_id_shared"
    own = Principal("k", "default", frozenset(SCOPES) - {"operator"})
    await store.revoke("1a2b3c4d", check=lambda record: check_change(own, record))
    assert [record.tenant for record in await store.records()] == ["acme"]
    await store.refresh()
    for secret in secrets[:2]:
        with pytest.raises(Unauthorized):
            await store.verify(secret)
    with pytest.raises(NotFound):
        await store.revoke("1a2b3c4d", check=lambda record: check_change(own, record))
    assert (await store.revoke("1a2b3c4d")).tenant == "acme"
