"""Promotions by the SDK: no canary is promoted that was not seen before."""

from __future__ import annotations

import json

import pytest
from bmt_client import Conflict
from bmt_client import _flows as flows
from bmt_client._retry import RetryPolicy
from bmt_client._transport import Response, Send, step

MAIN, CANARY = "3f9c" * 16, "91ab" * 16


def answer(digest, canary=None):
    parts = {"canary": {"digest": canary, "percent": 5} if canary else None, "shadow": None}
    body = {"name": "m", "alias": "prod", "digest": digest, "rev": 1, **parts}
    return Response(200, {}, json.dumps(body).encode())


def test_the_canary_that_was_read_is_the_one_that_is_promoted():
    flow = flows.promote(RetryPolicy(), "m", "prod", None, None)
    assert isinstance(step(flow, None, None), Send)
    sent = step(flow, answer(MAIN, CANARY), None)
    assert isinstance(sent, Send)
    assert json.loads(sent.request.body or b"") == {"canary": CANARY}
    assert sent.request.headers["If-Match"] == f'"{MAIN}"'
    with pytest.raises(StopIteration) as end:
        step(flow, answer(CANARY), None)
    assert end.value.value.digest == CANARY


def test_without_a_canary_nothing_is_promoted():
    """One that another caller set meanwhile was promoted, and reported as damaged bytes."""
    flow = flows.promote(RetryPolicy(), "m", "prod", None, None)
    step(flow, None, None)
    with pytest.raises(Conflict, match="m:prod has no canary") as caught:
        step(flow, answer(MAIN), None)
    assert caught.value.code == "no_canary"
