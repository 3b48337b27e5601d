"""A reinforcement job with the stock OpenAI client: file, grader, job, and the model that it makes.

The server has `--files`, and a worker runs: `bmt-train worker --max-new-tokens 16 …`.

BMT_API_KEY=... python examples/reinforcement_job.py http://127.0.0.1:8000 smol
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import Any

from openai import OpenAI

RIGHT = {
    "type": "string_check",
    "name": "right",
    "operation": "like",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
GRADER = {
    "type": "multi",
    "name": "right, and nothing else",
    "calculate_output": "0.5 * right + 0.5 * exact",
    "graders": {"right": RIGHT, "exact": {**RIGHT, "name": "exact", "operation": "eq"}},
}


def sums(seed: int, most: int) -> Iterator[dict[str, Any]]:
    """Rows of a reinforcement file: a prompt, and a column for the grader."""
    pairs = [(a, b) for a in range(1, most + 1) for b in range(1, most + 1)]
    random.Random(seed).shuffle(pairs)
    for a, b in pairs:
        question = f"What is {a} + {b}? Answer with the number only."
        yield {"messages": [{"role": "user", "content": question}], "answer": str(a + b)}


def accuracy(client: OpenAI, model: str, rows: Sequence[dict[str, Any]]) -> str:
    """Share of greedy answers whose last number is right, with Wilson's 95 % interval."""

    def is_right(row: dict[str, Any]) -> bool:
        reply = client.chat.completions.create(
            model=model, messages=row["messages"], max_tokens=16, temperature=0
        )
        numbers = re.findall(r"-?\d+", reply.choices[0].message.content or "")
        return numbers[-1:] == [row["answer"]]

    with ThreadPoolExecutor(8) as pool:
        right, n = sum(pool.map(is_right, rows)), len(rows)
    z, share = NormalDist().inv_cdf(0.975), right / n
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + (z / n) ** 2 / 4) ** 0.5
    low, high = (100 * (middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return f"{100 * share:.1f} % ({low:.1f} to {high:.1f}), n = {n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model", help="the server's base")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--heldout", type=int, default=400)
    parser.add_argument("--most", type=int, default=30, help="the largest number that is added")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.url}/v1", api_key=os.environ["BMT_API_KEY"])
    rows = list(sums(0, options.most))
    heldout, train = rows[: options.heldout], rows[options.heldout :][: options.rows]
    print(f"{options.model}: {accuracy(client, options.model, heldout)}", flush=True)

    started = time.monotonic()
    data = "".join(json.dumps(row) + "\n" for row in train).encode()
    file = client.files.create(file=("sums.jsonl", data), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 8}
    grader: Any = GRADER
    job = client.fine_tuning.jobs.create(
        model=options.model,
        training_file=file.id,
        suffix="sums",
        seed=0,
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": hyperparameters},
        },
    )
    seen = set[str]()
    while job.status in ("queued", "running"):
        time.sleep(2)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=20).data):
            if event.id not in seen:
                seen.add(event.id)
                print(event.message, flush=True)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        raise SystemExit(f"{job.id} {job.status}: {job.error.message if job.error else ''}")
    print(f"{job.status} after {time.monotonic() - started:.0f} s")
    print(client.files.content(job.result_files[0]).text.splitlines()[-1])
    tuned = job.fine_tuned_model
    print(f"{tuned}: {accuracy(client, tuned, heldout)}")


if __name__ == "__main__":
    main()
