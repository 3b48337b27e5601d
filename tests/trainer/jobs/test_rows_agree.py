"""Rows that a server keeps are rows that a worker's training reads."""

from __future__ import annotations

import io
import json

import pytest
from bmt_server.api.files.rows import check
from bmt_server.errors import BadRequest
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.jobs.job import rows_of
from hypothesis import HealthCheck, event, given, settings

from tests.support.requests.row_grammar import ROWS


def kept(row):
    """The form of a row that the server keeps, and its line; None for one that it refuses."""
    line = json.dumps(row).encode()
    try:
        return check(io.BytesIO(line)).form, line
    except BadRequest:
        return None


def read(form, line):
    """The example of the row as a job has it. Raises DataError."""
    (text,) = rows_of(form, [line])
    return example_of(json.loads(text), "row 1", "pair" if form == "dpo" else "auto")


@pytest.mark.found
@given(ROWS)
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_row_that_is_kept_is_read(row):
    if (found := kept(row)) is None:
        event("refused")
        return
    event(found[0])
    example = read(*found)
    if found[0] == "reinforcement":
        # What rollouts refuse of a prompt: methods/on_policy.py.
        assert not example.tools
        assert not any("tool_calls" in message for message in example.messages)
        assert example.prompt[-1]["role"] in ("user", "tool")
