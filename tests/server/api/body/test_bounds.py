"""Bounds on the bytes of a body, against a count of the parsed value; turns of long work."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from bmt_server.api.body.bounds import (
    LARGEST_BYTES,
    LARGEST_VALUES,
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_KEYS,
    BodyBounds,
)
from bmt_server.api.body.turns import Turns
from bmt_server.errors import BadRequest, PayloadTooLarge
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cpu_time import least_cpu

BOUNDS = BodyBounds.of_context(128)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\,:[]{}\n\u00e9', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text('a"\\:,{', max_size=4), inner, max_size=6)
    ),
    max_leaves=40,
)


def counts(value: Any) -> tuple[int, int, int, int]:
    """Containers, keys, values and depth of a parsed JSON value."""
    if not isinstance(value, (list, dict)):
        return 0, 0, 1, 0
    inner = [counts(v) for v in (value.values() if isinstance(value, dict) else value)]
    sums = [sum(column) for column in zip(*inner, strict=True)] if inner else [0, 0, 0, 0]
    keys = len(value) if isinstance(value, dict) else 0
    return sums[0] + 1, sums[1] + keys, sums[2], 1 + max((i[3] for i in inner), default=0)


def refused(data: bytes, bounds: BodyBounds = BOUNDS) -> str:
    try:
        bounds.check_structure(data)
    except BadRequest as error:
        return f"{error.code}: {error}"
    return ""


@given(VALUES, st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_a_parser_would_count_is_counted(monkeypatch_bounds, value, escaped):
    data = json.dumps(value, ensure_ascii=escaped).encode()
    containers, keys, _, depth = counts(value)
    for name, found in (("MAX_CONTAINERS", containers), ("MAX_KEYS", keys), ("MAX_DEPTH", depth)):
        with monkeypatch_bounds(name, found):
            assert not refused(data), (name, found, data)
        if found:
            with monkeypatch_bounds(name, found - 1):
                assert refused(data).startswith("body_too_complex"), (name, found, data)


@pytest.fixture(scope="session")
def monkeypatch_bounds():
    from contextlib import contextmanager

    from bmt_server.api.body import bounds

    @contextmanager
    def patched(name: str, value: int):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bounds, name, value)
            yield

    return patched


@pytest.mark.parametrize(
    "data",
    [
        b"[" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1),
        b"[" + b"{}," * MAX_CONTAINERS,
        b"{" + b'"a":1,' * (MAX_KEYS + 1),
        b"[" + b"1," * (BOUNDS.max_values + 1),
        b"[" + b'"",' * (BOUNDS.max_values + MAX_KEYS + 1),
        b'["\\\\", ' + b"[" * (MAX_DEPTH + 1),
        b'["\\"", ' + b"[" * (MAX_DEPTH + 1),
    ],
    ids=["arrays", "objects", "wide", "keys", "values", "strings", "backslash", "quote"],
)
def test_each_bound_is_found_in_a_part_of_a_body(data):
    assert refused(data)
    assert least_cpu(lambda: refused(data), 0.05) < 0.05


def test_text_is_text_whatever_it_contains():
    text = '[{"a": 1}, \\" \\\\ ' * 2000
    assert not refused(json.dumps({"prompt": text}).encode())


def test_bounds_follow_from_the_context():
    small, large = BodyBounds.of_context(1024), BodyBounds.of_context(131_072)
    assert small.max_bytes < 300 << 10
    assert large.max_bytes == (256 << 10) + 16 * 131_072
    assert BodyBounds.of_context(8192, 64).max_values == 32_768 + 64 * 8192
    # All of the context as token ids of seven digits, and as text of four bytes a token.
    for length in (1024, 8192, 131_072):
        bounds = BodyBounds.of_context(length)
        ids = b"[" + b"1000000," * length + b"1]"
        assert not refused(ids, bounds)
        bounds.check_size(len(ids))
    for unbounded in (BodyBounds.of_context(None), BodyBounds.of_context(10_000_000)):
        assert unbounded == BodyBounds(LARGEST_BYTES, LARGEST_VALUES)
    with pytest.raises(PayloadTooLarge):
        small.check_size(small.max_bytes + 1)


def test_the_largest_of_all_bodies_are_looked_at_in_time():
    """16 MiB of strings, of escapes, of numbers and of quotes."""
    bounds = BodyBounds.of_context(None)
    for unit in (b"a", b"\\n", b"\\\\", b'\\"', b"\\u0041", b'"', b"1,", b"\\"):
        data = b'["' + unit * (LARGEST_BYTES // len(unit)) + b'"]'
        assert least_cpu(lambda data=data: refused(data, bounds), 0.2) < 0.2, unit


async def test_long_work_takes_turns_and_pauses():
    turns, order = Turns(), []

    async def work(number: int) -> None:
        await turns.take()
        time.sleep(0.03)
        order.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    longest = 0.0
    while not all(task.done() for task in tasks):
        started = time.monotonic()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - started)
    assert order == [0, 1, 2, 3, 4]
    # Without turns they would all run in one step of the loop, which is 0.15 s.
    assert longest < 0.1


async def test_a_waiting_turn_can_be_given_up():
    turns = Turns()
    await turns.take()
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(turns.take(), 1)
