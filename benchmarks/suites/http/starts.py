"""Starts: from the command to the first answer, bmt-server's over vLLM's own server's, in turns.

Warm: what vLLM compiles is in its cache from a start before, as on a host that served already.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness.section import Context
from benchmarks.harness.stats import estimate, median
from benchmarks.processes.servers import NAME, Server, masks_server, vllm_server
from benchmarks.report.results import Baseline, Entry, Findings, Table

BARE, MASKS = "bare vLLM", "bmt-server"


def warm(context: Context) -> Findings:
    """One start of each that is not counted, then pairs in turns."""
    pairs = [
        context.step(f"pair-{number}", _pair, context, number)
        for number in range(context.scale.starts + 1)
    ][1:]
    ratio = estimate([[p[MASKS]["answer_s"] / p[BARE]["answer_s"]] for p in pairs])
    bare = median([p[BARE]["answer_s"] for p in pairs])
    baseline = Baseline(what="bare vLLM's server, warm", value=round(bare, 2), unit="s")
    entry = Entry.estimated(
        *("warm_start_over_base_http", ratio, "ratio of seconds", baseline, context.command),
        note="from the command to the first answer",
    )
    rows = [
        (
            name,
            f"{median([p[name]['ready_s'] for p in pairs]):.1f}",
            f"{median([p[name]['answer_s'] for p in pairs]):.1f}",
        )
        for name in (BARE, MASKS)
    ]
    table = Table(
        title="Warm starts",
        header=("server", "until it is ready, s", "until its first answer, s"),
        rows=rows,
        note=f"Medians of {len(pairs)} starts of each, in turns; bmt-server's has its embedded "
        "registry, empty, in it.",
    )
    return Findings(entries=[entry], tables=[table], samples={"pairs": pairs})


def _pair(context: Context, number: int) -> dict[str, Any]:
    found = {}
    for name in (BARE, MASKS) if number % 2 else (MASKS, BARE):
        context.say(f"start {number} of {context.scale.starts}: {name}")
        make = vllm_server if name == BARE else masks_server
        start = time.monotonic()
        with make(context.model, context.work / name.replace(" ", "-")) as server:
            ready = time.monotonic() - start
            _answer(server)
            found[name] = {"ready_s": ready, "answer_s": time.monotonic() - start}
    return found


def _answer(server: Server) -> None:
    """One token of the base model. Raises httpx2.HTTPError."""
    import httpx2

    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    body = {"model": NAME, "prompt": "The sky is", "max_tokens": 1}
    with httpx2.Client(timeout=120, headers=headers, trust_env=False) as client:
        client.post(f"{server.url}/v1/completions", json=body).raise_for_status()
