"""Values of a request that vLLM repeats in its response are ones that the response can hold."""

from __future__ import annotations

import pytest
from bmt_server.api.request_limits import pin_fields
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.sampling_params import SamplingParams

COMMON = sorted(ResponsesRequest.model_fields.keys() & ResponsesResponse.model_fields.keys())


def takes_null(model: type, field: str) -> bool:
    try:
        TypeAdapter(model.model_fields[field].annotation).validate_python(None)
    except ValidationError:
        return False
    return True


@pytest.mark.found
@pytest.mark.parametrize(
    "field", [f for f in COMMON if f != "model" and takes_null(ResponsesRequest, f)]
)
def test_a_null_in_a_request_fits_the_response(field):
    body = {"model": "m", "input": "x", field: None}
    pin_fields(body, ResponsesRequest.model_fields.keys())
    request = ResponsesRequest(**body)
    ResponsesResponse.from_request(
        request,
        SamplingParams(max_tokens=1, logprobs=0),
        model_name="m",
        created_time=0,
        output=[],
        status="in_progress",
    )
