"""LangChain with `examples/neighbors/langchain_chat.py`, on a real server."""

from __future__ import annotations

import ast
import os
import subprocess

import pytest

from tests.support.scenarios.neighbors import EXAMPLES, PROMPT, Neighborhood, python_of

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]


def example(neighborhood: Neighborhood, model: str) -> subprocess.CompletedProcess[str]:
    script = EXAMPLES / "langchain_chat.py"
    return subprocess.run(
        [python_of("langchain"), script, neighborhood.server.url, model, PROMPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "BMT_API_KEY": neighborhood.key},
    )


def test_an_answer_a_stream_and_a_function_call(neighborhood):
    expected = {
        "smol": "smol",
        "reverse": neighborhood.version,
        "smol:reverse:prod": neighborhood.version,
    }
    for model, answered in expected.items():
        done = example(neighborhood, model)
        assert done.returncode == 0, done.stderr
        said, _, rest = done.stdout.partition("\n")
        who, _, text = said.partition(": ")
        assert who == answered
        answer = ast.literal_eval(text)
        assert answer == neighborhood.answer(model, tokens=64)
        stream, _, call = rest.rstrip("\n").rpartition("\n")
        pieces = stream.split("|")
        assert len(pieces) > 10
        assert "".join(pieces) == answer
        name, _, arguments = call.partition(": ")
        assert name == "weather"
        assert set(ast.literal_eval(arguments)) == {"city"}


def test_an_unknown_mask_is_named(neighborhood):
    done = example(neighborhood, "none")
    assert done.returncode != 0
    assert "The model `none` does not exist" in done.stderr
