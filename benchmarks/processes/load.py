"""Loads over HTTP, made by vLLM's own `vllm bench serve` code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.contention import rest
from benchmarks.processes.child import Child
from benchmarks.processes.servers import NAME, Server

_TIMEOUT_S = 900


class LoadError(RuntimeError):
    """Requests of a load failed; a figure of the rest would not be of the same load."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One load. output_tokens_per_s over its whole duration; times to first token in ms;
    longest_gap_ms: the longest time that any request waited between two tokens."""

    output_tokens_per_s: float
    duration_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    longest_gap_ms: float

    def raw(self) -> dict[str, float]:
        return asdict(self)


class Loads:
    """The generator's process. `run` asks a server for one load."""

    def __init__(self, child: Child, tokenizer: Path) -> None:
        self._child, self._tokenizer = child, tokenizer

    def run(
        self,
        server: Server,
        names: Sequence[str] | None,
        *,
        requests: int,
        tokens: int,
        concurrency: int,
        seed: int,
    ) -> Measured:
        """Send `requests` prompts of about 16 random tokens, about `tokens` out each, at most
        `concurrency` at once. names: the model of each request in turn, or None for the base model.

        Raises LoadError where a request failed, ChildError where the generator did.
        """
        flags = f"--dataset-name random --random-input-len 16 --random-output-len {tokens}"
        # Lengths that differ, by half either way: equal ones would end and start in waves.
        flags += " --random-range-ratio 0.5"
        flags += f" --num-prompts {requests} --max-concurrency {concurrency} --seed {seed}"
        flags += " --ignore-eos --temperature 0 --disable-tqdm --save-detailed"
        flags += " --ready-check-timeout-sec 0 --percentile-metrics ttft,itl"
        args = ["--base-url", server.url, "--model", NAME, "--tokenizer", str(self._tokenizer)]
        args += flags.split()
        if names is not None:
            # Round-robin over a list as long as the load: exactly these, in this order.
            args += ["--lora-assignment", "round-robin", "--lora-modules", *names]
        rest()
        answer = self._child.ask({"args": args, "key": server.key}, _TIMEOUT_S)
        if answer["completed"] != requests:
            errors = sorted({e for e in answer.get("errors", []) if e})
            raise LoadError(
                f"{answer['completed']} of {requests} requests ended well: {errors[:2]}; "
                f"the server's log ends:\n{server.tail()}"
            )
        return _measured(answer)


def _measured(answer: dict[str, Any]) -> Measured:
    ttft = np.asarray(answer["ttfts"]) * 1000
    gaps = [float(max(gap, default=0.0)) * 1000 for gap in answer["itls"]]
    return Measured(
        output_tokens_per_s=float(answer["output_throughput"]),
        duration_s=float(answer["duration"]),
        ttft_p50_ms=float(np.percentile(ttft, 50)),
        ttft_p99_ms=float(np.percentile(ttft, 99)),
        longest_gap_ms=max(gaps),
    )


@contextlib.contextmanager
def loads(tokenizer: Path, folder: Path) -> Iterator[Loads]:
    """The load generator, ended with the block."""
    child = Child("load generator", "benchmarks.processes.load_child", [], folder / "load.log")
    try:
        yield Loads(child, tokenizer)
    finally:
        child.stop()
