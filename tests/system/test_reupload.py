"""Re-upload of a mask while 32 of its streams run: each ends on its own version, bit-identical."""

from __future__ import annotations

import asyncio

import bmt_core
import httpx2
import pytest

from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.load import Target, until
from tests.support.scenarios.servers import server, target

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

STREAMS = scaled(32, 8)
TOKENS = 60


async def text(to: Target, model: str, prompt: str) -> tuple[str, str]:
    """The answer and the version that gave it."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    async with httpx2.AsyncClient(timeout=300) as client:
        answer = await client.post(
            f"http://127.0.0.1:{to.port}/v1/completions",
            json={**body, "ignore_eos": True},
            headers={"Authorization": f"Bearer {to.key}"},
        )
    found = answer.json()
    return found["choices"][0]["text"], found["model"]


def test_reupload(smol, valkey, admin_key, tmp_path):
    figures = Figures("reupload")
    prompts = [f"Number {i} is" for i in range(STREAMS)]
    flags = ("--max-num-seqs", "64")
    with server(smol, tmp_path, valkey.url, admin_key, *flags) as served:
        to = target(served)
        versions = [bmt_core.encode(random_mask_of(smol, seed, 0.02)) for seed in (0, 1)]

        def put(data: bytes) -> dict:
            url = f"{served.url}/v1/masks/m"
            return httpx2.put(url, content=data, headers=served.headers, timeout=60).json()

        async def all_of(model: str) -> list[tuple[str, str]]:
            return await asyncio.gather(*(text(to, model, p) for p in prompts))

        async def run() -> None:
            old = (await asyncio.to_thread(put, versions[0]))["model"]
            wanted_old = await all_of("m")
            running = asyncio.create_task(all_of("m"))

            async def all_run() -> bool:
                return await to.figure("vllm:num_requests_running") >= STREAMS

            await until(all_run, 60)
            new = (await asyncio.to_thread(put, versions[1]))["model"]
            fresh = await all_of("m")
            ended = await running
            wanted_new = await all_of("m")
            size = f"{STREAMS} streams of {TOKENS} tokens, the prefix cache warm"
            mixed = sum(a != b for a, b in zip(ended, wanted_old, strict=True))
            figures.record("streams_that_changed", mixed, "streams", "== 0", size=size)
            stale = sum(a != b for a, b in zip(fresh, wanted_new, strict=True))
            figures.record("answers_not_of_the_new", stale, "answers", "== 0", size=size)
            assert {m for _, m in ended} == {old}
            assert {m for _, m in fresh} == {new}
            # Otherwise none of this could be seen.
            same = sum(a[0] == b[0] for a, b in zip(wanted_old, wanted_new, strict=True))
            assert same < STREAMS / 4, same

        asyncio.run(run())
    figures.end()
