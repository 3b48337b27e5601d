"""Imports by the SDK and the command line: what is sent, and what is refused before that."""

from __future__ import annotations

import json

import pytest
from bmt_client import UsageError
from bmt_client import _flows as flows
from bmt_client import _routes as routes
from bmt_client._retry import RetryPolicy
from bmt_client._transport import Response, Send, step

DIGEST = "3f9c" * 16
VERSION = {"name": "m", "digest": DIGEST, "rev": 1, "imported_from": "hf://acme/masks/m.bmt"}


def test_the_request_of_an_import():
    request = routes.import_mask(
        "m", "s3://b/k", aliases=("prod",), digest=DIGEST, if_match=DIGEST, expires="1h"
    )
    assert (request.method, request.path) == ("POST", "/v1/masks/m/import")
    assert json.loads(request.body or b"") == {"source": "s3://b/k"}
    assert dict(request.params) == {"alias": "prod", "digest": DIGEST, "expires": "1h"}
    assert request.headers["If-Match"] == f'"{DIGEST}"'
    assert routes.import_mask("m", "x", if_none_match=True).headers["If-None-Match"] == "*"


@pytest.mark.parametrize(("status", "outcome"), [(201, "created"), (200, "unchanged")])
def test_the_version_of_an_import(status, outcome):
    flow = flows.import_mask(RetryPolicy(), "hf://a/b/c", "m", "prod", None, None, False, None)
    effect = step(flow, None, None)
    assert isinstance(effect, Send)
    assert dict(effect.request.params) == {"alias": "prod"}
    with pytest.raises(StopIteration) as end:
        step(flow, Response(status, {}, json.dumps(VERSION).encode()), None)
    assert (end.value.value.outcome, end.value.value.changed) == (outcome, status == 201)
    assert end.value.value.imported_from == VERSION["imported_from"]


def test_conditions_that_exclude_each_other():
    flow = flows.import_mask(RetryPolicy(), "hf://a/b/c", "m", (), None, DIGEST, True, None)
    with pytest.raises(UsageError, match="exclude"):
        step(flow, None, None)


def test_a_source_without_a_file_needs_a_name(program, server, monkeypatch):
    monkeypatch.setenv("BMT_URL", server.url)
    found = program("import", "math:prod", exit_code=2)
    assert "--name" in found.output
    assert not [r for r in server.requests if "import" in str(r)]
