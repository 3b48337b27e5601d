"""400 connections with made-up keys next to 40 uploads of a good key; 300 first requests of one."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.strangers import first_requests, stub, uploads_beside_strangers

pytestmark = [pytest.mark.operate, pytest.mark.timeout(600)]

STRANGERS, UPLOADS, FIRST = scaled(400, 40), 40, scaled(300, 30)


def test_keyless_clients(valkey, tmp_path):
    figures = Figures("keyless", "keyless")
    with stub(valkey.url, tmp_path / "0") as one:
        mine, theirs = asyncio.run(uploads_beside_strangers(one, STRANGERS, UPLOADS))
    size = f"{UPLOADS} uploads next to {STRANGERS} connections, {sum(theirs.values())} requests"
    figures.record(f"{STRANGERS}_uploads_ok", mine[201], "uploads", f"== {UPLOADS}", size=size)
    other = sum(n for status, n in theirs.items() if status not in (401, 429))
    figures.record("otherwise_refused", other, "requests", "== 0", size=size)
    figures.end()


def test_first_requests(valkey, tmp_path):
    """At a replica that has not seen the key: made by one that has stopped."""
    figures = Figures("first_requests")
    with stub(valkey.url, tmp_path / "0") as one:
        key = one.key
    with stub(valkey.url, tmp_path / "1") as two:
        found = asyncio.run(first_requests(type(two)(two.url, key), FIRST))
    figures.record("ok", found[200], "requests", f"== {FIRST}", size=f"{FIRST} at once, one key")
    figures.end()
