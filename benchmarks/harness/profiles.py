"""Profiles: the full measurement, and a quick one that shows that everything works."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Counts and sizes of one run. FULL takes hours on 2 cores, QUICK ten minutes."""

    name: str
    # Offline engines: sets of processes, rounds of short slices in each, and the work of one slice.
    # Two processes of one engine differ by more than two slices of one process.
    pairs: int
    pairs_eager: int  # in eager mode, which is shown next to the default one
    peer_pairs: int  # of those, how many also run the stock LoRA engines and the checkpoint
    peer_pairs_eager: int
    turns: int
    peer_turns: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens: int
    # Over HTTP: requests of one load, and masks or adapters known to the servers.
    requests: int
    request_tokens: int
    concurrency: int
    growth: tuple[int, ...]
    growth_lora: dict[int, tuple[int, ...]]  # rank -> counts of adapters
    uniform: int  # masks of the uniform load whose speed is compared with one mask's
    http_pairs: int
    # Servers in turns: rounds, requests and tokens of a load at 32 at once; other numbers at once.
    http_rounds: int
    http_requests: int
    http_tokens: int
    http_at_once: tuple[int, ...]
    http_rounds_at_once: int
    starts: int
    mode_pairs: int
    # Masks of an 8B model's shape.
    layers: int
    processes: int  # fresh processes for what needs no engine
    repeats: int  # turns in each of them
    alternation_steps: int
    # Cold masks: how many arrive in a round, rounds, and first tokens taken one by one.
    cold_masks: int
    cold_rounds: int
    cold_firsts: int

    def digest(self) -> str:
        """Key that separates results of different profiles in a resumed run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


FULL = Scale(
    name="full",
    pairs=2,
    pairs_eager=1,
    peer_pairs=1,
    peer_pairs_eager=1,
    turns=30,
    peer_turns=8,
    prompt_tokens=16,
    new_tokens=16,
    prefill_tokens=2048,
    requests=128,
    request_tokens=32,
    concurrency=32,
    growth=(1, 10, 100, 1000, 5000),
    growth_lora={1: (1, 10, 100, 1000), 8: (1, 100, 200)},
    uniform=1000,
    http_pairs=5,
    http_rounds=40,
    http_requests=64,
    http_tokens=16,
    http_at_once=(1, 8, 128),
    http_rounds_at_once=4,
    starts=5,
    mode_pairs=3,
    layers=32,
    processes=5,
    repeats=2,
    alternation_steps=40,
    cold_masks=100,
    cold_rounds=4,
    cold_firsts=40,
)

QUICK = Scale(
    name="quick",
    pairs=1,
    pairs_eager=1,
    peer_pairs=1,
    peer_pairs_eager=1,
    turns=2,
    peer_turns=1,
    prompt_tokens=16,
    new_tokens=8,
    prefill_tokens=512,
    requests=64,
    request_tokens=16,
    concurrency=32,
    growth=(1, 10, 40),
    growth_lora={1: (1, 10), 8: (1, 10)},
    uniform=40,
    http_pairs=2,
    http_rounds=2,
    http_requests=32,
    http_tokens=8,
    http_at_once=(8,),
    http_rounds_at_once=1,
    starts=1,
    mode_pairs=1,
    layers=4,
    processes=1,
    repeats=2,
    alternation_steps=40,
    cold_masks=10,
    cold_rounds=1,
    cold_firsts=5,
)
