"""A tenth of the working set fits: every answer is right all the same, and nothing fails."""

from __future__ import annotations

import asyncio
import random
import time

import bmt_core
import httpx2
import numpy as np
import openai
import pytest

from tests.support.masks import random_mask_of
from tests.support.served import Served, until

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.timeout(400)]

MASKS = 40
# A mask of this sparsity takes 2.2 MiB, so that four fit.
SPARSITY, MEMORY_MIB = 0.02, 9
TOKENS = 6
PROMPT = "The history of the sea"
TOLERANCE = 1e-3  # of a log-probability, in float32


@pytest.fixture(scope="module")
def server(smol, valkey, tmp_path_factory):
    flags = ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "6"]
    flags += ["--mask-memory-mib", str(MEMORY_MIB)]
    served = Served(smol, tmp_path_factory.mktemp("served"), *flags, registry=valkey.url)
    yield served
    assert served.stop() in (0, -15), served.log.read_text()[-2000:]


@pytest.mark.found
def test_eviction_under_load_gives_no_wrong_answer_and_no_error(server, smol):
    names = [f"m{i}" for i in range(MASKS)]
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=30) as http:
        for i, name in enumerate(names):
            data = bmt_core.encode(random_mask_of(smol, i, SPARSITY))
            assert http.put(f"/v1/masks/{name}", content=data).status_code == 201
    order = names * 4
    random.Random(0).shuffle(order)

    async def ask(client, name: str) -> np.ndarray:
        """Log-probabilities of the answer's tokens: they tell masks apart where texts may not."""
        answer = await client.completions.create(
            model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0, logprobs=0
        )
        assert answer.model.startswith(f"{name}@")
        return np.array(answer.choices[0].logprobs.token_logprobs)

    async def run() -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        base = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=server.key, max_retries=0) as client:
            alone = {name: await ask(client, name) for name in names}
            # More at once than the engine takes: they wait, and their masks are evicted meanwhile.
            slots = asyncio.Semaphore(20)

            async def one(name: str) -> np.ndarray:
                async with slots:
                    return await ask(client, name)

            together = await asyncio.gather(*(one(name) for name in order))
            await client.completions.create(model="smol", prompt="x", max_tokens=1)
        return alone, together

    alone, together = asyncio.run(run())
    rows = np.stack([alone[name] for name in names])
    apart = np.abs(rows[:, None] - rows[None]).max(axis=2)[~np.eye(MASKS, dtype=bool)]
    assert apart.min() > 10 * TOLERANCE, "masks must give different answers"
    off = [float(np.abs(p - alone[n]).max()) for n, p in zip(order, together, strict=True)]
    assert max(off) < TOLERANCE
    evictions = 'bmt_mask_evictions_total{rank="0"}'
    # Workers write their figures a few times a second: the last ones under load must be gone.
    time.sleep(0.6)
    until(lambda: server.metrics()[evictions] > 2 * MASKS)
    found = server.metrics()
    assert found[evictions] > 2 * MASKS
    assert found['bmt_masks_resident_bytes{rank="0"}'] <= MEMORY_MIB << 20
    assert 2 <= found['bmt_masks_resident{rank="0"}'] <= 4
