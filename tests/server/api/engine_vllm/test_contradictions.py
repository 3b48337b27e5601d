"""Fields that leave the engine no token: the request's fault, with a reason, on every route."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bmt_server.api.engine_vllm.contradictions import check_output, check_parameters
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

EOS = 2


def parameters(bad: list[list[int]] | None = None, **fields) -> SamplingParams:
    """Complete ones: with the model's end of sequence, and the tokens of bad words."""
    params = SamplingParams(**fields)
    params._all_stop_token_ids.add(EOS)
    params._bad_words_token_ids = bad
    return params


@pytest.mark.parametrize(
    ("bad", "fields"),
    [
        ([[504]], {"allowed_token_ids": [504]}),
        ([[504], [505]], {"allowed_token_ids": [504, 505]}),
        (None, {"allowed_token_ids": [EOS], "min_tokens": 1}),
        (None, {"allowed_token_ids": [EOS, 7], "stop_token_ids": [7], "min_tokens": 3}),
        ([[504]], {"allowed_token_ids": [EOS, 504], "min_tokens": 1}),
    ],
)
def test_fields_that_leave_no_token_are_refused(bad, fields):
    with pytest.raises(VLLMValidationError, match="allowed_token_ids") as caught:
        check_parameters(parameters(bad, **fields))
    assert ("min_tokens" in str(caught.value)) == ("min_tokens" in fields)


@pytest.mark.parametrize(
    ("bad", "fields"),
    [
        ([[504, 505]], {"allowed_token_ids": [504]}),
        ([[504]], {"allowed_token_ids": [504, 505]}),
        (None, {"allowed_token_ids": [EOS]}),
        (None, {"allowed_token_ids": [EOS, 9], "min_tokens": 4}),
        ([[504]], {"min_tokens": 4}),
    ],
)
def test_fields_that_leave_a_token_are_taken(bad, fields):
    check_parameters(parameters(bad, **fields))


def check(count: int, wanted: dict | None, **fields) -> bool:
    """The engine's error after so many tokens."""
    structured = StructuredOutputsParams(**wanted) if wanted else None
    if structured is not None:
        structured._backend = "xgrammar"
    completions = [SimpleNamespace(index=0, finish_reason="error")]
    output = SimpleNamespace(outputs=completions, request_id="r")
    return check_output(parameters(structured_outputs=structured, **fields), output, {0: count})


OBJECT = {"json": {"type": "object"}}


@pytest.mark.found
@pytest.mark.parametrize(
    ("count", "wanted", "fields", "named"),
    [
        (1, OBJECT, {"allowed_token_ids": [504]}, "allowed_token_ids"),
        (9, OBJECT, {"allowed_token_ids": [504]}, "allowed_token_ids"),
        (2, {"choice": ["a"]}, {"min_tokens": 20, "max_tokens": 30}, "min_tokens"),
        (1, {"choice": ["a"]}, {"bad_words": ["a"]}, "bad_words"),
        (1, {"json": {"$ref": "#"}}, {}, "no token at all"),
        (0, OBJECT, {}, "xgrammar, cannot compile"),
    ],
)
def test_a_grammar_without_a_token_is_the_requests_fault(count, wanted, fields, named):
    with pytest.raises(VLLMValidationError, match=named):
        check(count, wanted, **fields)


@pytest.mark.parametrize(("count", "wanted"), [(3, None), (0, None), (5, OBJECT)])
def test_other_failures_stay_the_servers(count, wanted):
    assert check(count, wanted)


def test_outputs_without_an_error_are_passed():
    vector = SimpleNamespace(outputs=SimpleNamespace(data=[0.5]))
    assert not check_output(None, vector, {})
    fine = SimpleNamespace(outputs=[SimpleNamespace(index=0, finish_reason=None)])
    assert not check_output(parameters(), fine, {0: 1})
