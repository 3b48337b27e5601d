"""Retry policy: statuses, number of attempts and waits."""

from __future__ import annotations

import email.utils
import time

import pytest
from bmt_client import RateLimited, Unavailable, UsageError
from bmt_client._retry import RetryPolicy, exchange
from bmt_client._transport import NoAnswer, Request, Response, Send, Sleep

from tests.support.http.fake_server import Fault

# The fixture shortens waits; this file tests the policy without it.
wait_s = RetryPolicy.wait_s
REQUEST = Request("GET", "/v1/masks")


def answer(status: int, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, named, b"")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_failures_are_retried(status):
    assert wait_s(RetryPolicy(), 0, answer(status)) is not None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 411, 412, 413, 415, 422, 501, 507])
def test_permanent_failures_are_not_retried(status):
    assert wait_s(RetryPolicy(), 0, answer(status)) is None


def test_backoff_doubles_up_to_a_bound_with_jitter():
    policy = RetryPolicy(max_retries=100)
    plain = [wait_s(policy, n, None, lambda: 0.0) for n in range(8)]
    assert plain == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    assert wait_s(policy, 0, None, lambda: 1.0) == pytest.approx(0.15)
    assert wait_s(policy, 99, None, lambda: 0.0) == 8.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "3"}, 0.25),
        ({"retry_after": "120"}, 120.0),
        ({"retry_after": "121"}, None),
        ({"retry_after": "inf"}, None),
        # A malformed header counts as none.
        ({"retry_after": "-1"}, 0.2),
        ({"retry_after": "nan"}, 0.2),
        ({"retry_after": "soon"}, 0.2),
        ({"retry_after": ""}, 0.2),
    ],
)
def test_the_server_states_the_wait(headers, seconds):
    found = wait_s(RetryPolicy(), 0, answer(503, **headers), lambda: 0.0)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_retry_after_may_be_a_date():
    date = email.utils.formatdate(time.time() + 10, usegmt=True)
    found = wait_s(RetryPolicy(), 0, answer(503, retry_after=date))
    assert found is not None
    assert 8 < found <= 10
    past = email.utils.formatdate(time.time() - 10, usegmt=True)
    assert wait_s(RetryPolicy(), 0, answer(503, retry_after=past)) == 0.0


def test_x_should_retry_overrides_the_status():
    assert wait_s(RetryPolicy(), 0, answer(503, x_should_retry="false")) is None
    assert wait_s(RetryPolicy(), 0, answer(409, x_should_retry="true")) is not None


def drive(policy: RetryPolicy, outcomes: list[Response | NoAnswer], request: Request = REQUEST):
    """Run an exchange on scripted outcomes; returns its result or error, and the waits."""
    flow, waits = exchange(request, policy), []
    effect, script = next(flow), iter(outcomes)
    try:
        while True:
            if isinstance(effect, Sleep):
                waits.append(effect.seconds)
                effect = flow.send(None)
                continue
            assert isinstance(effect, Send)
            outcome = next(script)
            effect = flow.throw(outcome) if isinstance(outcome, NoAnswer) else flow.send(outcome)
    except StopIteration as end:
        return end.value, waits
    except (Unavailable, RateLimited) as error:
        return error, waits


def test_an_exchange_ends_with_the_first_good_answer():
    lost = NoAnswer("reset", code="connection")
    found, waits = drive(RetryPolicy(), [answer(503), lost, answer(200)])
    assert (found.status, found.attempts, len(waits)) == (200, 3, 2)


def test_retries_are_bounded():
    found, waits = drive(RetryPolicy(max_retries=2), [answer(429)] * 3)
    assert isinstance(found, RateLimited)
    assert (found.attempts, len(waits)) == (3, 2)
    found, waits = drive(RetryPolicy(max_retries=0), [NoAnswer("reset", code="connection")])
    assert isinstance(found, Unavailable)
    assert (found.code, found.retryable, waits) == ("connection", True, [])


def test_an_untrusted_certificate_is_not_retried():
    found, waits = drive(RetryPolicy(), [NoAnswer("bad", code="certificate", retryable=False)])
    assert isinstance(found, Unavailable)
    assert waits == []


@pytest.mark.parametrize("count", [-1, 1001, 1.5, None])
def test_a_bad_retry_count_is_a_usage_error(count):
    with pytest.raises(UsageError, match="max_retries"):
        RetryPolicy(max_retries=count)


def test_over_a_socket(client, server):
    server.faults = [Fault(503), Fault(drop=True), Fault(429, {"Retry-After": "0"})]
    assert list(client.list()) == []
    assert len(server.requests) == 4


def test_the_last_error_has_the_servers_message(connect, server):
    client = connect(server.url, max_retries=1)
    server.faults = [Fault(503, {"Retry-After": "7"})] * 2
    with pytest.raises(Unavailable, match="try later") as caught:
        client.get("math")
    error = caught.value
    assert (error.status, error.code, error.request_id) == (503, "registry_down", "req-1")
    assert (error.retry_after, error.retryable, error.attempts) == (7.0, True, 2)
