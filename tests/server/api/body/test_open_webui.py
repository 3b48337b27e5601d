"""Open WebUI's requests, at the gate and vLLM's own request models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bmt_server.api.middleware import RequestMiddleware
from fastapi.middleware.cors import CORSMiddleware

from tests.support.replica import make_mask
from tests.support.requests.open_webui import PAGE
from tests.support.requests.open_webui import calls as webui_calls


@pytest.mark.found
@pytest.mark.parametrize("url", ["/v1", "/v1/", "//v1"])
async def test_every_call_is_answered(api, calls, url):
    api.app.user_middleware.clear()
    api.app.add_middleware(
        CORSMiddleware, allow_origins=[PAGE], allow_methods=["*"], allow_headers=["*"]
    )
    api.app.add_middleware(RequestMiddleware)
    api.app.state.args = SimpleNamespace(
        allowed_origins=[PAGE], allow_credentials=False, log_error_stack=False
    )
    await api.put("reverse", make_mask(), params={"alias": "prod"})
    for model in ("tiny", "reverse", "reverse:prod", "tiny:reverse"):
        for call in webui_calls(api.keys["infer"], model):
            async with api.client("") as client:
                answer = await client.request(
                    call.method,
                    f"http://test{url}{call.path}",
                    headers=call.headers,
                    json=call.body,
                )
            assert answer.status_code == 200, (call.what, answer.text)
            if "Origin" in call.headers:
                assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
            if call.path == "/models" and call.method == "GET":
                data = answer.json()["data"]
                assert {m["id"] for m in data} == {"tiny", "reverse", "reverse:prod"}
                assert all(m.get("name", m["id"]) for m in data)
            if call.body is not None:
                seen = calls[-1].request
                assert seen.stream == call.body["stream"]
                assert seen.model.partition("@")[0] in ("tiny", "reverse")
                assert not any(name.startswith("x-openwebui") for name in calls[-1].headers)
