"""LiteLLM's proxy with `examples/neighbors/litellm.yaml`, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.http.ports import free_port
from tests.support.scenarios.neighbors import (
    EXAMPLES,
    PROMPT,
    TOKENS,
    Neighborhood,
    python_of,
    running,
)

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1800)]

MASTER = "sk-neighbors"


@pytest.fixture(scope="module")
def litellm(
    neighborhood: Neighborhood, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("litellm")
    port = free_port()
    program = python_of("litellm").with_name("litellm")
    command = [program, "--config", EXAMPLES / "litellm.yaml", "--host", "127.0.0.1"]
    env = {
        "BMT_API_BASE": f"{neighborhood.server.url}/v1",
        "BMT_API_KEY": neighborhood.key,
        "LITELLM_MASTER_KEY": MASTER,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HOME": str(folder),
    }
    url = f"http://127.0.0.1:{port}"
    with (
        running(
            [*command, "--port", str(port)], f"{url}/health/liveliness", folder / "log", env, folder
        ),
        httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {MASTER}"}, timeout=120
        ) as client,
    ):
        yield client


def chat(model: str, **changes: object) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    return {**body, "max_tokens": TOKENS, **changes}


def test_the_base_and_masks_answer_by_name(litellm, neighborhood):
    for model in ("smol", "reverse", "reverse:prod", neighborhood.version):
        answer = litellm.post("/v1/chat/completions", json=chat(f"masks/{model}"))
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        assert said == neighborhood.answer(model)
    assert neighborhood.answer("reverse") != neighborhood.answer("smol")


def test_a_stream_has_the_same_words(litellm, neighborhood):
    body = chat("masks/reverse", stream=True)
    with litellm.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(e)["choices"][0]["delta"].get("content") or "" for e in events[:-1]]
    assert sum(map(bool, pieces)) > 5
    assert "".join(pieces) == neighborhood.answer("reverse")


def test_the_list_has_the_masks(litellm):
    listed = litellm.get("/v1/models")
    names = {model["id"] for model in listed.json()["data"]}
    assert names == {"masks/smol", "masks/reverse", "masks/reverse:prod"}


def test_errors_of_the_server_reach_the_caller(litellm):
    """An unknown mask is the caller's 404, again and again, and turns no other mask away."""
    for _ in range(5):
        unknown = litellm.post("/v1/chat/completions", json=chat("masks/none"))
        assert unknown.status_code == 404, unknown.text
        assert "none" in unknown.json()["error"]["message"]
    wrong = litellm.post("/v1/chat/completions", json=chat("masks/reverse", top_p=7))
    assert wrong.status_code == 400, wrong.text
    assert litellm.post("/v1/chat/completions", json=chat("masks/smol")).status_code == 200


def test_a_caller_brings_a_key_of_its_own(litellm, neighborhood):
    own = chat("masks/reverse", api_key=neighborhood.server.key)
    assert litellm.post("/v1/chat/completions", json=own).status_code == 200
    wrong = litellm.post("/v1/chat/completions", json=chat("masks/reverse", api_key="bmt_wrong"))
    assert wrong.status_code == 401, wrong.text
    assert "bmt_wrong" not in wrong.text
