"""Two tenants at one engine: neither sees by the prefix cache what the other one asked."""

from __future__ import annotations

import asyncio
import uuid

import httpx2
import pytest
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

pytestmark = pytest.mark.engine


def keys(url: str) -> dict[str, str]:
    async def make() -> dict[str, str]:
        store = RegistryConnection(url)
        made = {}
        for tenant in ("acme", "rival"):
            created = await ApiKeyStore(store).create(("infer",), tenant=tenant)
            assert created is not None
            made[tenant] = created[0]
        await store.close()
        return made

    return asyncio.run(make())


def bodies(text: str) -> dict[str, dict]:
    user = [{"role": "user", "content": text}]
    return {
        "/v1/chat/completions": {"messages": user, "max_tokens": 1},
        "/v1/completions": {"prompt": text, "max_tokens": 1},
        "/v1/messages": {"messages": user, "max_tokens": 1},
        "/v1/responses": {"input": text, "max_output_tokens": 1},
    }


def cached(path: str, answer: dict) -> int:
    """Tokens of the prompt that were in the prefix cache; None counts as 0."""
    usage = answer["usage"]
    if path == "/v1/messages":
        return usage.get("cache_read_input_tokens") or 0
    details = "input_tokens_details" if path == "/v1/responses" else "prompt_tokens_details"
    return (usage.get(details) or {}).get("cached_tokens") or 0


@pytest.mark.found
@pytest.mark.parametrize("path", bodies("x"))
def test_prompts_of_a_tenant_are_cached_for_it_alone(server, registry, path):
    made = keys(registry.url)
    text = f"{uuid.uuid4()} " + "The north wind and the sun argued about strength. " * 40
    seen = {}
    for who in ("acme", "acme", "rival", "rival"):
        answer = httpx2.post(
            server.url + path,
            json={"model": "smol", **bodies(text)[path]},
            headers={"Authorization": f"Bearer {made[who]}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        seen.setdefault(who, []).append(cached(path, answer.json()))
    assert seen["acme"][0] == seen["rival"][0] == 0
    assert seen["acme"][1] > 0
    assert seen["rival"][1] > 0
