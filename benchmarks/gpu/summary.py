"""Ratios of a GPU run: speed beside bare vLLM, parity of answers, cost of versions under load."""

from __future__ import annotations

from typing import Any

Figures = dict[str, dict[str, Any]]


def summary(figures: Figures) -> dict[str, Any]:
    """Ratios of the figures that are there, by name; a part that is missing adds none."""
    bare, masks = figures.get("bare", {}), figures.get("masks", {})
    found: dict[str, Any] = {}
    for name, figure in masks.items():
        base = bare.get(f"{name.rsplit(', ', 1)[0]}, base")
        if isinstance(figure, dict) and isinstance(base, dict) and "tokens_s" in figure:
            found[f"{name}, over bare vLLM"] = round(figure["tokens_s"] / base["tokens_s"], 3)
    known, arriving = (
        masks.get(f"under load: {name}") for name in ("known masks", "new versions arrive")
    )
    if known and arriving:
        found["new versions under load, over known masks"] = round(
            arriving["tokens_s"] / known["tokens_s"], 3
        )
    return found | _parity(bare, masks)


def _parity(bare: dict[str, Any], masks: dict[str, Any]) -> dict[str, Any]:
    """Shares of equal tokens: with the masked checkpoint, and of base and mask."""
    found = {}
    for name, tokens in masks.items():
        if not name.startswith("parity "):
            continue
        wanted = bare.get(name.split(", ")[0].removesuffix(" after masks"))
        if isinstance(wanted, list):
            # Of a corrected run the last answer is the base's.
            count = len(tokens) - 1 if name.endswith("corrected") else len(tokens)
            found[f"{name}: tokens of the checkpoint's"] = agreement(tokens[:count], wanted[:count])
    if isinstance(bare.get("parity mask 0"), list):
        share = agreement(bare["parity base"], bare["parity mask 0"])
        found["tokens in which base and mask 0 agree"] = share
    return found


def agreement(one: list[list[int]], two: list[list[int]]) -> float:
    """Share of equal tokens at equal places."""
    pairs = [a == b for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    return round(sum(pairs) / len(pairs), 4)


def line(part: dict[str, Any]) -> str:
    """A part's end for the terminal, with the last line of its log unless it is done."""
    words = f"{part['name']:8} {part['end']}, {part['seconds']} s"
    if part["end"] == "done":
        return words
    last = next((row for row in reversed(part["log"].splitlines()) if row.strip()), "no log")
    return f"{words}: {last.strip()[:300]}"


def report(found: dict[str, Any]) -> str:
    """Lines for the terminal: how parts ended, then the ratios."""
    lines = [line(part) for part in found["parts"]]
    if not found["measured"]:
        return "\n".join(
            [*lines, "nothing was measured: no CUDA device, --tiny, or no part came to a figure"]
        )
    return "\n".join([*lines, *(f"{k}: {v}" for k, v in found["ratios"].items())])
