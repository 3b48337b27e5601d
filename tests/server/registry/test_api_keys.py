"""API keys: times and tenants that are checked, look-ups that are few."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from bmt_server.errors import ApiError, BadRequest, RateLimited, Unauthorized
from bmt_server.registry import unknown_keys
from bmt_server.registry.api_keys import ApiKeyStore, make_key
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.expiry import has_expired, parse_expiry
from bmt_server.registry.unknown_keys import UnknownKeyLimit

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


@pytest.mark.found
@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("30d", "2026-12-29T12:00:00+00:00"),
        ("7d", "2026-12-06T12:00:00+00:00"),
        ("1h", "2026-11-29T13:00:00+00:00"),
        ("90m", "2026-11-29T13:30:00+00:00"),
        ("2w", "2026-12-13T12:00:00+00:00"),
        ("2026-11-29T14:00:00+01:00", "2026-11-29T13:00:00+00:00"),
        ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00+00:00"),
    ],
)
def test_an_expiry_is_stored_in_utc(text, stored):
    assert parse_expiry(text, NOW) == stored


@pytest.mark.found
@pytest.mark.parametrize(
    "text",
    [
        *("tomorrow", "", "30", "d", "30 days", "-1d", "0d", "999999w", "٣d"),
        *("2027-01-01", "2027-01-01T00:00:00", "2026-11-29T12:00:00Z", "2026-11-29T13:30:00+02:00"),
    ],
)
def test_an_expiry_that_is_unreadable_or_past_is_refused(text):
    with pytest.raises(BadRequest) as found:
        parse_expiry(text, NOW)
    assert repr(text) in str(found.value)


def test_stored_times_are_compared_as_times():
    soon = datetime.now(UTC) + timedelta(minutes=30)
    # As text it is smaller than the present time in UTC, and it is later.
    west = soon.astimezone(tz=None).astimezone(UTC).isoformat()
    assert not has_expired(west)
    assert not has_expired((soon - timedelta(hours=9)).replace(tzinfo=None).isoformat() + "-09:00")
    assert has_expired((soon + timedelta(hours=8)).replace(tzinfo=None).isoformat() + "+09:00")


@pytest.fixture
async def store(valkey):
    connection = RegistryConnection(valkey.url)
    await connection.quick.flushall()
    yield ApiKeyStore(connection)
    await connection.close()


@pytest.mark.found
@pytest.mark.parametrize("tenant", ["acme/sub", "", "Acme", "a b", "acme\n", "..", "a" * 200])
async def test_a_tenant_has_the_form_of_a_name(store, tenant):
    with pytest.raises(BadRequest) as found:
        await store.create(("admin",), tenant=tenant)
    assert found.value.param == "tenant"
    assert await store.records() == []


@pytest.mark.found
async def test_first_requests_of_one_key_share_a_look_up(store):
    secret, record = await store.create(("infer",))
    quick = store._connection.quick
    before = (await quick.info("commandstats")).get("cmdstat_hget", {"calls": 0})["calls"]
    found = await asyncio.gather(*(store.verify(secret, "10.0.0.1") for _ in range(300)))
    assert {p.key_id for p in found} == {record.key_id}
    after = (await quick.info("commandstats"))["cmdstat_hget"]["calls"]
    assert after - before == 1


async def test_a_canceled_request_leaves_the_look_up_to_the_others(store):
    secret, record = await store.create(("infer",))
    first = asyncio.create_task(store.verify(secret))
    second = asyncio.create_task(store.verify(secret))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).key_id == record.key_id


async def test_unknown_keys_are_bounded_by_peer(store):
    secret, record = await store.create(("infer",))

    async def outcome(key: str, peer: str) -> str:
        try:
            return (await store.verify(key, peer)).key_id
        except ApiError as error:
            return error.code

    made_up = [make_key(("infer",)) for _ in range(2 * unknown_keys.LOOK_UPS)]
    found = await asyncio.gather(*(outcome(key, "10.0.0.1") for key in made_up))
    assert set(found) == {"invalid_api_key", "unknown_keys"}
    assert found.count("invalid_api_key") <= unknown_keys.LOOK_UPS + 5
    with pytest.raises(RateLimited) as refused:
        await store.verify(make_key(("infer",)), "10.0.0.1")
    assert refused.value.retry_after == 1
    assert await outcome(secret, "10.0.0.2") == record.key_id
    # Known by now, so it costs no look-up.
    assert await outcome(secret, "10.0.0.1") == record.key_id


async def test_keys_that_exist_cost_a_peer_nothing(store):
    made = [await store.create(("infer",)) for _ in range(unknown_keys.LOOK_UPS + 20)]
    for secret, record in made:
        assert (await store.verify(secret, "10.0.0.1")).key_id == record.key_id
    with pytest.raises(Unauthorized):
        await store.verify(make_key(("infer",)), "10.0.0.1")


def test_one_ipv6_host_is_one_peer():
    limit = UnknownKeyLimit()
    for i in range(unknown_keys.LOOK_UPS):
        limit.take(f"2001:db8::{i:x}")
    with pytest.raises(RateLimited):
        limit.take("2001:db8::ffff")
    limit.take("2001:db8:0:1::1")
    limit.take("10.0.0.1")


def test_peers_are_forgotten_beyond_a_bound():
    limit = UnknownKeyLimit()
    for i in range(10_000):
        limit.take(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(limit._buckets) <= 4096
