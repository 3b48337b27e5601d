"""64 generated expiries on two replicas: no key outlives its time by more than 5 s, on either."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from bmt_server.registry.keys.secret import hash_key, make_key

from tests.support.replica import replica

SEED = 23
SHORT = 24
SLACK_S = 5.0
NONSENSE = [
    *("", " ", "tomorrow", "never", "0", "30", "d", "30 days", "-1h", "0m", "1.5h", "1e3d", "٣d"),
    *("999999w", "2999-01-01", "2999-01-01T00:00:00", "2999-13-01T00:00:00Z", "1764417600", "PT1H"),
    *("2999-01-01T00:00:00 Europe/Berlin", "2020-01-01T00:00:00Z", "30d\n30d", "null", "2999-W01"),
]


@dataclass
class Case:
    """text: as a client gives it. ends: the time that it means; None: it is refused."""

    text: str
    ends: datetime | None
    key: str = ""


def cases(now: datetime) -> list[Case]:
    """Times in any zone and form that end within seconds, long durations, and nonsense."""
    draw, found = random.Random(SEED), []
    for number in range(SHORT):
        at = now + timedelta(seconds=draw.uniform(3, 5))
        zone = timezone(timedelta(minutes=draw.randint(-14 * 60, 14 * 60)))
        form = ["seconds", "milliseconds", "microseconds"][number % 3]
        text = at.astimezone(zone).isoformat(" " if number % 5 == 0 else "T", form)
        if number % 4 == 0:
            text = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        found.append(Case(text, at))
    for _ in range(16):
        amount, unit = draw.randint(1, 500), draw.choice("mhdw")
        seconds = amount * {"m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
        found.append(Case(f"{amount}{unit}", now + timedelta(seconds=seconds)))
    found += [Case(text, None) for text in NONSENSE]
    return found


async def works(api, key):
    async with api.client("") as client:
        headers = {"Authorization": f"Bearer {key}"}
        return (await client.get("/v1/me", headers=headers)).status_code == 200


@pytest.mark.found
async def test_no_key_outlives_its_time_on_any_replica(api, valkey, tmp_path):
    generated = cases(datetime.now(UTC))
    assert len(generated) == 64
    async with replica(valkey.url, tmp_path / "two", api.keys) as two, api.client() as admin:

        async def make(case):
            body = {"scopes": ["infer"], "expires": case.text}
            answer = await admin.post("/v1/keys", json=body)
            assert answer.status_code == (400 if case.ends is None else 201), (case, answer.text)
            if case.ends is not None:
                stored = datetime.fromisoformat(answer.json()["expires"])
                assert abs((stored - case.ends).total_seconds()) < 3, case
                case.key = answer.json()["key"]
            else:
                # An early version stored the text as it was.
                case.key, digest = (secret := make_key(("infer",))), hash_key(secret)
                record = {"key_id": digest[:8], "tenant": "default", "scopes": ["infer"]}
                record |= {"label": "", "created": "2026-01-01T00:00:00+00:00"}
                text = json.dumps({**record, "expires": case.text})
                await api.state.connection.quick.hset("{bmt}:keys", digest, text)

        for at in range(0, len(generated), 8):
            await asyncio.gather(*map(make, generated[at : at + 8]))
        late: list[tuple[Case, float]] = []
        begin = datetime.now(UTC)
        ends = max(case.ends for case in generated[:SHORT] if case.ends is not None)
        while datetime.now(UTC) < ends + timedelta(seconds=1):
            for one in (api, two):
                for case in generated:
                    if await works(one, case.key):
                        over = datetime.now(UTC) - (case.ends or begin - timedelta(days=1))
                        late += [(case, over.total_seconds())] if over > timedelta(0) else []
            await asyncio.sleep(0.1)
        assert max((over for _, over in late), default=0) <= SLACK_S, late[:3]
        # A second after the last of them: what has time left works on both, and all else on none.
        now = datetime.now(UTC)
        for one in (api, two):
            for case in generated:
                left = case.ends is not None and case.ends > now
                assert await works(one, case.key) == left, case
        # An operator sees the keys that are refused for what early versions stored.
        listed = (await admin.get("/v1/keys?limit=1000")).json()["data"]
        unreadable = {k["expires"] for k in listed if k["status"] == "unreadable"}
        readable = {"2020-01-01T00:00:00Z"}
        assert unreadable == set(NONSENSE) - readable


async def test_the_end_of_a_key_that_is_in_use_moves_nearer_on_all_replicas(api, valkey, tmp_path):
    """By a rotation and by a revocation, on the replica that did not make them."""
    async with replica(valkey.url, tmp_path / "two", api.keys) as two, api.client() as admin:
        made = [(await admin.post("/v1/keys", json={"scopes": ["infer"]})).json() for _ in range(2)]
        assert all([await works(one, k["key"]) for one in (api, two) for k in made])
        await admin.post(f"/v1/keys/{made[0]['key_id']}/rotate", json={"overlap": "0m"})
        await admin.delete(f"/v1/keys/{made[1]['key_id']}")
        async with asyncio.timeout(SLACK_S):
            while any([await works(one, k["key"]) for one in (api, two) for k in made]):
                await asyncio.sleep(0.02)
