"""API keys: times and tenants that are checked, look-ups that are few."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from bmt_server.errors import BadRequest, RateLimited, RegistryDown, Unauthorized
from bmt_server.registry.api_keys import ApiKeyStore, make_key
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.keys import reader as key_reader
from bmt_server.registry.keys.expiry import has_expired, parse_expiry

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


@pytest.mark.found
@pytest.mark.parametrize("tenant", ["acme/sub", "", "Acme", "a b", "acme\n", "..", "a" * 200])
async def test_a_tenant_has_the_form_of_a_name(store, tenant):
    with pytest.raises(BadRequest) as found:
        await store.create(("admin",), tenant=tenant)
    assert found.value.param == "tenant"
    assert await store.records() == []


async def reads(client) -> int:
    stats = await client.info("commandstats")
    return stats.get("cmdstat_hmget", {"calls": 0})["calls"]


@pytest.mark.found
async def test_first_requests_of_one_key_share_a_look_up(store):
    secret, record = await store.create(("infer",))
    quick = store._connection.quick
    before = await reads(quick)
    found = await asyncio.gather(*(store.verify(secret, "10.0.0.1") for _ in range(300)))
    assert {p.key_id for p in found} == {record.key_id}
    after = await reads(quick)
    assert after - before == 1


async def test_a_canceled_request_leaves_the_look_up_to_the_others(store):
    secret, record = await store.create(("infer",))
    first = asyncio.create_task(store.verify(secret))
    second = asyncio.create_task(store.verify(secret))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).key_id == record.key_id


async def test_a_flood_of_made_up_keys_costs_a_few_reads(store):
    """An honest key waits for a share of it behind the same address, and not at all elsewhere."""
    mine, other = [await store.create(("infer",)) for _ in range(2)]
    quick = store._connection.quick
    made_up = [make_key(("infer",)) for _ in range(600)]
    before = await reads(quick)
    flood = [asyncio.create_task(store.verify(key, "10.0.0.1")) for key in made_up]
    await asyncio.sleep(0)
    elsewhere = await store.verify(other[0], "10.0.0.2")
    assert elsewhere.key_id == other[1].key_id
    assert sum(task.done() for task in flood) < len(flood) / 2
    assert (await store.verify(mine[0], "10.0.0.1")).key_id == mine[1].key_id
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unauthorized}
    assert await reads(quick) - before < 20
    assert store._connection.up


async def test_keys_of_one_peer_that_wait_are_bounded(store):
    made_up = [make_key(("infer",)) for _ in range(key_reader.WAITING + 200)]
    work = (store.verify(key, f"2001:db8::{i:x}") for i, key in enumerate(made_up))
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, RateLimited)]
    assert 0 < len(refused) <= 200
    assert {o.retry_after for o in refused} == {1}
    assert len(refused) + sum(isinstance(o, Unauthorized) for o in outcomes) == len(outcomes)


async def test_a_registry_that_is_away_fails_each_look_up_once(tmp_path):
    connection = RegistryConnection(f"unix://{tmp_path}/none")
    keys = ApiKeyStore(connection)
    work = (keys.verify(make_key(("infer",)), "10.0.0.1") for _ in range(300))
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    assert {type(o) for o in outcomes} == {RegistryDown}
    await connection.close()


@pytest.mark.found
@pytest.mark.parametrize(
    ("peers", "networks"),
    [
        (["10.0.0.1", "::ffff:10.0.0.1", "::ffff:203.0.113.9"], {"10.0.0.1", "203.0.113.9"}),
        (["2001:db8::1", "2001:db8::2"], {"2001:db8::/64"}),
    ],
)
def test_a_socket_for_both_families_has_a_queue_for_each_address(peers, networks):
    assert {key_reader._network(peer) for peer in peers} == networks
