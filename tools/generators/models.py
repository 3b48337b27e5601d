"""The page of models, from the outcomes that `make models` keeps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training" / "models.md"
OUTCOMES = ROOT / "tools" / "models" / "outcomes.json"

_HEAD = """# Models

<!-- Written by tools/generators/models.py from tools/models/outcomes.json. -->

A mask deletes weights of the *gate projection* in every block of a gated MLP, `mlp.gate_proj`.
This page has every architecture of transformers {transformers} that the trainer may load, by its
`model_type` in `config.json`: {causal} causal ones, and {others} that read images too and are
loaded for their text. `make models` tries them again.

`bmt-train doctor MODEL` says the same of one model before any work: the layers that are masked,
those that are not and why, and what a server takes.

How a row came about:

- **Trainer**: a tiny random model of the architecture got gates, was calibrated, trained for a
  step, exported and applied. *Yes* means that the masked model's logits equal those of the
  checkpoint with the same weights set to zero, bit for bit, and differ from the base's. Nothing was
  learnt, and no released weights were loaded: *yes* is about the architecture.
- **Server**: vLLM {vllm} loaded a tiny random checkpoint, and each gate that the worker found
  there equals the checkpoint's tensor of that name. *Not tried* means that this vLLM did not load
  the tiny checkpoint; the reason is its own. Towers of images and sound were not loaded, as by
  `bmt-server serve`. vLLM's classes of some families import torchvision; these were tried with its
  Python code alone, because PyPI's build has operators for CUDA. A server needs the build for its
  torch, which `make setup` takes from PyTorch's index; without one `bmt-server serve` and
  `bmt-server doctor MODEL` name it.
- *By rows*: the checkpoint stores gate and up projection as one tensor; masks take
  [the gate's rows](../reference/format.md#rows-of-a-tensor).

"""
_TRAINED = """| model_type | class in transformers | gate | trainer | server |
|---|---|---|---|---|
"""
_EXPERTS = """These are refused by default, below, and masked in every layer with
`--targets '\\.mlp\\.gate_proj$|\\.experts\\.\\d+\\.gate_proj$'`, with the same
comparison. A server takes them [on CPUs](../serving/experts.md), where the checkpoint has a matrix
for each gate.

| model_type | class in transformers | server |
|---|---|---|
"""


def pages() -> dict[Path, str | None]:
    """The page and its text."""
    document = json.loads(OUTCOMES.read_text())
    return {PAGE: page(document["versions"], document["outcomes"])}


def page(versions: Mapping[str, str], outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as text. outcomes: by `model_type`, as `tools/models` writes them."""
    causal = sum(bool(o["causal"]) for o in outcomes.values())
    text = _HEAD.format(
        transformers=versions["transformers"],
        vllm=versions.get("vllm", "(none)"),
        causal=causal,
        others=len(outcomes) - causal,
    )
    trained = {k: o for k, o in outcomes.items() if o["trains"]}
    refused = {k: o for k, o in outcomes.items() if o["trains"] is False}
    untried = {k: o for k, o in outcomes.items() if o["trains"] is None}
    served = sum(o.get("serves") is True for o in trained.values())
    text += f"## Masked in every layer: {len(trained)}, of them served: {served}\n\n"
    text += _TRAINED
    for kind, outcome in trained.items():
        gate = "by rows" if outcome["fused"] else "own"
        name = f"`{outcome['architecture']}`"
        text += f"| `{kind}` | {name} | {gate} | yes | {_server(outcome)} |\n"
    experts = {k: o for k, o in refused.items() if o.get("experts")}
    served = sum(o.get("serves") is True for o in experts.values())
    text += f"\n## Experts, by targets: {len(experts)}, of them served: {served}\n\n"
    text += _EXPERTS
    for kind, outcome in experts.items():
        text += f"| {kind} | `{outcome['architecture']}` | {_server(outcome)} |\n"
    text += f"\n## Refused, with the reason: {len(refused)}\n\n"
    counts = Counter(_reason(o) for o in refused.values())
    text += "| reason | number | model_type |\n|---|---:|---|\n"
    for reason, count in counts.most_common():
        text += f"| {reason} | {count} | {_names(refused, reason)} |\n"
    text += f"\n## Not tried: {len(untried)}\n\n"
    text += "No tiny model of these could be made here; `bmt-train doctor` judges a real one.\n\n"
    text += "| model_type | reason |\n|---|---|\n"
    for kind, outcome in untried.items():
        text += f"| `{kind}` | {_cell(outcome['reason'])} |\n"
    return text


_REASONS = {
    "experts": "Experts, which are not masked by default; `--targets` trains the gate of each "
    "where the model holds them in one tensor, not transposed",
    "no gate projection": "No gate projection: the MLP is not gated, or it has other names",
    "a gate under another name": "A gate under another name; `--targets` reaches it in training, "
    "and no server takes it",
    "gate and up projection are fused in an order that is not known": "Gate and up projection are "
    "fused in an order that is not known",
}


def _reason(outcome: Mapping[str, Any]) -> str:
    reason = str(outcome["reason"])
    if "of" in reason and reason.endswith("layers have a gate projection"):
        return (
            "Dense first layers, experts in the others: only some layers have a gate projection; "
            "`--targets` masks these alone, or experts' gates as in the row of experts"
        )
    if "is absent in the checkpoint" in reason:
        return "transformers makes the gates of other tensors of the checkpoint"
    if "cannot be loaded" in reason or "Unrecognized configuration" in reason:
        return "transformers loads no model of the text part's configuration alone"
    return _REASONS.get(reason) or _cell(reason)


def _names(outcomes: Mapping[str, Mapping[str, Any]], reason: str) -> str:
    found: Iterable[str] = (k for k, o in outcomes.items() if _reason(o) == reason)
    return ", ".join(f"`{kind}`" for kind in found)


def _server(outcome: Mapping[str, Any]) -> str:
    if outcome.get("serves"):
        return "yes"
    found = str(outcome.get("server_reason") or "vLLM did not reach it")
    reason = _cell(found)
    if "torchvision" in found:
        reason = "this vLLM cannot import its class without torchvision"
    elif "processor" in found.lower():
        reason = "vLLM wants an image processor, and transformers makes none of its defaults"
    return f"no: {reason}" if outcome.get("serves") is False else f"not tried: {reason}"


def _cell(text: str) -> str:
    """A reason in a table: one line, short, without what a table or HTML would take for its own."""
    line = " ".join(text.split()).replace("|", "/").replace("<", "‹").replace(">", "›")
    return line if len(line) <= 140 else f"{line[:139]}…"
