"""Matchups: engines and workloads that are compared with the bare engine, each under its id."""

from __future__ import annotations

from dataclasses import dataclass

DECODE, PREFILL = "decode", "prefill"
SEQUENCES = 32  # as the ids say
AGAIN, MASKS, CHECKPOINT = "again", "masks", "checkpoint"  # engines other than "bare"


@dataclass(frozen=True, slots=True)
class Contest:
    """One contender's work against the bare engine's: the id, which engine, what it runs."""

    id: str
    engine: str
    kind: str  # DECODE or PREFILL
    adapters: tuple[int | None, ...]
    what: str


def contests(*, eager: bool) -> list[Contest]:
    """Ours, and the bare engine again; in eager mode ids end so, and one sparsity stands for both.

    The first SEQUENCES adapters of a masked engine have the paper's sparsity, the next as many
    that which SFT reached.
    """
    suffix = _suffix(eager)
    every = tuple(range(SEQUENCES))
    sft = tuple(range(SEQUENCES, 2 * SEQUENCES))
    ours = [
        Contest(f"idle_over_base{suffix}", MASKS, DECODE, (None,), "mask support on, no mask"),
        Contest(f"single_over_base{suffix}", MASKS, DECODE, (0,), "one mask, 0.2 %"),
        Contest(f"mixed32_over_base{suffix}", MASKS, DECODE, every, "a mask a sequence, 0.2 %"),
        Contest(f"prefill_over_base{suffix}", MASKS, PREFILL, (0,), "prefill, one mask, 0.2 %"),
    ]
    more_zeros = [
        Contest(
            f"single_over_base_sft_density{suffix}", MASKS, DECODE, sft[:1], "one mask, 0.45 %"
        ),
        Contest(
            f"mixed32_over_base_sft_density{suffix}",
            *(MASKS, DECODE, sft, "a mask a sequence, 0.45 %"),
        ),
        Contest(
            f"prefill_over_base_sft_density{suffix}",
            *(MASKS, PREFILL, sft[:1], "prefill, one mask, 0.45 %"),
        ),
    ]
    again = [
        Contest(f"base_over_base{suffix}", AGAIN, DECODE, (None,), "the bare engine again"),
        Contest(f"prefill_base_over_base{suffix}", AGAIN, PREFILL, (None,), "prefill, bare again"),
    ]
    return again + ours + ([] if eager else more_zeros)


def peer_contests(*, eager: bool) -> list[Contest]:
    """Other ways to serve a fine-tune: its own checkpoint, and vLLM's LoRA."""
    suffix = _suffix(eager)
    every = tuple(range(SEQUENCES))
    found = [
        Contest(
            f"checkpoint_over_base{suffix}", CHECKPOINT, DECODE, (None,), "the masked checkpoint"
        ),
        Contest(
            f"prefill_checkpoint_over_base{suffix}",
            *(CHECKPOINT, PREFILL, (None,), "prefill, the masked checkpoint"),
        ),
    ]
    for rank in lora_ranks(eager=eager):
        name, key = f"lora-r{rank}", f"lora_r{rank}"
        found += [
            Contest(
                f"{key}_single_over_base{suffix}", name, DECODE, (0,), f"LoRA r={rank}, one adapter"
            ),
            Contest(
                f"{key}_mixed32_over_base{suffix}",
                *(name, DECODE, every, f"LoRA r={rank}, an adapter a sequence"),
            ),
            Contest(
                f"{key}_prefill_over_base{suffix}",
                *(name, PREFILL, (0,), f"prefill, LoRA r={rank}, one adapter"),
            ),
        ]
    return found


def lora_ranks(*, eager: bool) -> tuple[int, ...]:
    """In eager mode rank 1 alone: vLLM runs LoRA eagerly on the CPU in either mode."""
    return (1,) if eager else (1, 8)


def _suffix(eager: bool) -> str:
    return "_eager" if eager else ""
