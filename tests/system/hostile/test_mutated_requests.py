"""Valid requests with one place changed, at a real engine: whatever it is, no answer is a 5xx."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from pathlib import Path

import bmt_core
import httpx2
import pytest

from tests.support.masks import random_mask_of
from tests.support.requests.mutations import (
    Request,
    field_operations,
    mutated_bodies,
    mutated_requests,
    valid_requests,
)
from tests.support.requests.vllm_app import build_vllm_app
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.servers import server
from tests.support.tiny_model import save_tiny_llama

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

CASES = scaled(20_000, 400)
AT_ONCE = 24
OK = ("200", "201", "204")
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint that vLLM takes: its attention on the CPU needs heads of 32."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    # As transformers has them by default.
    rest = {"tie_word_embeddings": False, "bos_token_id": 1}
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), **shape, **rest)


def chosen(mask: bytes) -> list[Request]:
    """All cases: each field of each route as often, and the other routes with a tenth."""
    chance = random.Random(20)
    pairs = [
        (p, n, o) for p, f in field_operations(build_vllm_app().openapi()).items() for n, o in f
    ]
    others = mutated_requests(mask, CASES // 10)
    each = -(-(CASES - len(others)) // len(pairs))
    bodies = [list(mutated_bodies(*pair, each * 2)) for pair in pairs]
    # Where a schema has few values, other fields have more.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*bodies))
    made = [r for r in turns if r is not None][: CASES - len(others)] + others
    return chance.sample(made, len(made))


async def answers(url: str, key: str, requests: list[Request]) -> list[tuple[Request, str, str]]:
    """Each request with its status and text; "none" for a connection that ends without one."""
    limit = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": f"Bearer {key}"}
    # A connection each: the server closes idle ones, and a request may meet that.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits
    ) as client:

        async def send(request: Request) -> tuple[Request, str, str]:
            async with limit:
                form = {"Content-Type": request.content_type}
                try:
                    answer = await client.request(
                        request.method, request.path, content=request.data, headers=form
                    )
                except httpx2.HTTPError as error:
                    return request, "none", repr(error)
            broken = answer.status_code == 200 and '"code": "internal"' in answer.text
            return request, "500" if broken else str(answer.status_code), answer.text

        return list(await asyncio.gather(*(send(r) for r in requests)))


def test_mutated_requests(tiny, valkey, admin_key, tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    figures = Figures("mutated_requests")
    mask = bmt_core.encode(random_mask_of(tiny, 0, 0.02))
    requests = chosen(mask)
    flags = (*TOOLS, "--max-num-queued-reqs", "100000")
    with server(tiny, tmp_path, valkey.url, admin_key, *flags) as served:
        before = [asyncio.run(answers(served.url, admin_key, [r])) for r in valid_requests(mask)]
        found = asyncio.run(answers(served.url, admin_key, requests))
        after = [asyncio.run(answers(served.url, admin_key, [r])) for r in valid_requests(mask)]
        for ((request, status, text),) in (*before, *after):
            assert status in OK, (request, text)
        assert served.process.poll() is None
    counts = Counter((f"{r.method} {r.route}", status) for r, status, _ in found)
    for (route, status), count in sorted(counts.items()):
        print(f"{route:40} {status} {count}")
    broken = [(r, text) for r, status, text in found if status >= "500"]  # "none" too
    for request, text in broken[:20]:
        print(request.path, request.place, (request.data or b"")[:600], text[:300])
    ok = sum(count for (_, status), count in counts.items() if status in OK)
    size = f"{len(found)} cases, {len({r.route for r in requests})} routes, {ok} answered 2xx"
    figures.record("cases", len(found), "cases", f">= {CASES}", size=size)
    figures.record("ok_share", ok / len(found), "fraction", ">= 0.25", size=size)
    figures.record("answers_5xx", len(broken), "answers", "== 0", size=size)
    figures.end()
