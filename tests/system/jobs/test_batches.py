"""A batch over 50 masks under live chats, in slices with and without it; then its server is killed.

The time to first token of the chats is compared between slices of one run: in every other one the
batch is there. Then one server of two is killed by SIGKILL, and each line has its own answer once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence

import openai
import pytest
from openai.types import Batch

from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, Target
from tests.support.scenarios.servers import SEVERAL, server, start, target, upload
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(4 * 3600)]

LINES, MASKS = scaled(2000, 40), scaled(50, 4)
CLIENTS = 8
SLICES = scaled(6, 2)  # with the batch; as many without
SLICE_S = float(scaled(60, 20))
TOKENS = 16
COMPLETIONS = "/v1/completions"
NAMES = [f"m{i}" for i in range(MASKS)]


def line(number: int) -> dict:
    body = {
        "model": NAMES[number % MASKS],
        "prompt": f"The number {number} is",
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    return {"custom_id": f"q{number}", "method": "POST", "url": COMPLETIONS, "body": body}


def create(client: openai.OpenAI, lines: int) -> Batch:
    text = b"".join(json.dumps(line(n)).encode() + b"\n" for n in range(lines))
    file = client.files.create(file=("b.jsonl", text), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"
    )


def ended(client: openai.OpenAI, batch_id: str, within_s: float) -> Batch:
    deadline = time.monotonic() + within_s
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.5)


def wrong_rows(client: openai.OpenAI, batch: Batch, lines: int) -> int:
    """Lines without exactly one answer by the mask that they name."""
    assert batch.output_file_id is not None, batch
    found: dict[str, list[str]] = {}
    for text in client.files.content(batch.output_file_id).content.splitlines():
        row = json.loads(text)
        found.setdefault(row["custom_id"], []).append(row["response"]["body"]["model"])
    return sum(
        [model.partition("@")[0] for model in found.get(f"q{n}", [])] != [NAMES[n % MASKS]]
        for n in range(lines)
    )


async def chats(where: Target, ends: asyncio.Event) -> list[Answer]:
    """Answers to live clients, each of which asks again when it is answered."""
    found: list[Answer] = []

    async def one(number: int) -> None:
        while not ends.is_set():
            mask = NAMES[(number * 7) % MASKS]
            found.append(await where.ask(mask, tokens=TOKENS, prompt=f"Client {number} says"))
            number += CLIENTS

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return found


def client_of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=3)


def test_live_requests_before_batches(smol, valkey, admin_key, tmp_path):
    figures = Figures("batches")
    files = ("--files", str(tmp_path / "files"))
    size = f"{LINES} lines, {MASKS} masks, {CLIENTS} clients, slices of {SLICE_S:g} s"
    with server(smol, tmp_path / "one", valkey.url, admin_key, *files) as served:
        upload(served, smol, {name: seed for seed, name in enumerate(NAMES)})
        client = client_of(served)
        ttft, tokens, answered = asyncio.run(_slices(served, client))
        _record(figures, size, ttft, tokens, answered)
    figures.end()


async def _slices(
    served: Served, client: openai.OpenAI
) -> tuple[dict[bool, list[float]], dict[bool, int], int]:
    """Times to first tokens and tokens of clients that never stop, and lines that were answered.

    In every other slice there is the batch; what began while it came or went belongs to none.
    """
    ends, spans, answered = asyncio.Event(), [], 0
    asking = asyncio.create_task(chats(target(served), ends))
    await asyncio.sleep(5.0)
    for number in range(2 * SLICES):
        with_batch = number % 2 == 1
        batch = await asyncio.to_thread(create, client, LINES) if with_batch else None
        if batch is not None:
            await asyncio.to_thread(_until_it_runs, client, batch)
        began = time.monotonic()
        await asyncio.sleep(SLICE_S)
        spans.append((began, time.monotonic(), with_batch))
        if batch is not None:
            await asyncio.to_thread(client.batches.cancel, batch.id)
            counts = (await asyncio.to_thread(ended, client, batch.id, 60)).request_counts
            answered += counts.completed
    ends.set()
    answers = await asking
    assert all(answer.ok for answer in answers), answers
    ttft: dict[bool, list[float]] = {True: [], False: []}
    tokens = dict.fromkeys(ttft, 0)
    for answer in answers:
        for began, end, with_batch in spans:
            if began <= answer.began < end:
                ttft[with_batch].append(answer.ttft_s)
                tokens[with_batch] += answer.tokens
    return ttft, tokens, answered


def _until_it_runs(client: openai.OpenAI, batch: Batch) -> None:
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.1)


def _record(
    figures: Figures,
    size: str,
    ttft: dict[bool, list[float]],
    tokens: dict[bool, int],
    answered: int,
) -> None:
    def both(share: float) -> Sequence[float]:
        return [percentile(ttft[with_batch], share) for with_batch in (False, True)]

    asked, least = len(ttft[False]) + len(ttft[True]), scaled(2000, 20)
    figures.record("chats", asked, "", f">= {least}", size=size, note="timed, in all slices")
    (p50, p50_batch), (p99, p99_batch) = both(50), both(99)
    figures.record("ttft_p99", p99 * 1000, "ms", size=size, note="slices without the batch")
    figures.record("ttft_p99_with", p99_batch * 1000, "ms", size=size)
    figures.record("ttft_p99_ratio", p99_batch / p99, "", "<= 1.3", size=size)
    figures.record("ttft_p50_ratio", p50_batch / p50, "", "<= 1.3", size=size)
    ratio = tokens[True] / tokens[False]
    figures.record("live_tokens_ratio", ratio, "", ">= 0.5", size=size)
    rate = answered / (SLICES * SLICE_S)
    figures.record("lines_per_s", rate, "1/s", ">= 0.01", size=size, note="under the clients")


def test_a_killed_server_loses_and_repeats_no_line(smol, valkey, admin_key, tmp_path):
    figures = Figures("batches", "a_killed_server_loses_and_repeats_no_line")
    files = ("--files", str(tmp_path / "files"))
    size = f"{LINES} lines, {MASKS} masks"
    servers = [
        start(smol, tmp_path / n, valkey.url, admin_key, *files, env=SEVERAL, wait=False)
        for n in ("one", "two")
    ]
    try:
        for served in servers:
            served.wait()
        upload(servers[0], smol, {name: seed for seed, name in enumerate(NAMES)})
        client = client_of(servers[1])
        # Created on the first one, which takes it at once.
        batch = create(client_of(servers[0]), LINES)
        while client.batches.retrieve(batch.id).request_counts.completed < LINES // 3:
            time.sleep(0.1)
        os.killpg(servers[0].process.pid, signal.SIGKILL)
        killed = time.monotonic()
        kept = client.batches.retrieve(batch.id).request_counts.completed
        while client.batches.retrieve(batch.id).request_counts.completed <= kept:
            time.sleep(0.1)
        resumed_s = time.monotonic() - killed
        batch = ended(client, batch.id, 3600)
        assert batch.status == "completed", batch
        figures.record("wrong_lines", wrong_rows(client, batch, LINES), "", "== 0", size=size)
        figures.record("resumed_after_kill", resumed_s, "s", "<= 60", size=size)
    finally:
        for served in servers:
            served.stop()
    figures.end()
