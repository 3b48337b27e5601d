"""Trial of an architecture in the trainer: a tiny random model, from its gates to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bmt_core
import torch
from bmt_trainer.errors import ModelError
from bmt_trainer.masking.apply import write_checkpoint
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.diagnosis import Diagnosis, diagnose, diagnosis_of
from bmt_trainer.masking.export import export
from bmt_trainer.masking.initialization import initialize
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.masking.targets import EXPERT_GATES, GATE_PROJECTIONS, holds_experts
from bmt_trainer.models import architecture_of, base_of, load_model
from transformers import CONFIG_MAPPING, PretrainedConfig

from tools.models.configurations import VOCABULARY, tiny

#: Targets of models with experts: gates of dense layers, and of each expert.
WITH_EXPERTS = rf"{GATE_PROJECTIONS}|{EXPERT_GATES}"
# Above this, a model is not tiny, and its weights are not made.
_MOST_WEIGHTS = 30_000_000
_TOKENS = 12


class NotEqual(Exception):
    """A masked model and its checkpoint that differ, or a mask that trains nothing."""


def trial(kind: str) -> dict[str, Any]:
    """The outcome for one `model_type`: `trains`, and the reason if it is not True.

    trains: True if a masked model was trained for a step, exported and applied, with logits equal
    to those of the checkpoint with the same zeros, bit for bit; None if that could not be tried.
    experts: the same with `WITH_EXPERTS`, for a model that is refused for its experts.
    """
    try:
        config = tiny(kind)
        outline = _outline(config)
    except Exception as error:
        return _of_default(kind, error)
    found = diagnosis_of(outline, None, None)
    if found.refusal is not None:
        answer = _answer(found, trains=False, reason=_short(found))
        if any(holds_experts(name, p) for name, p in outline.named_parameters()):
            answer["experts"] = _with_experts(config, outline)
        return answer
    if sum(p.numel() for p in outline.parameters()) > _MOST_WEIGHTS:
        return _answer(found, trains=None, reason="no tiny model of it is known")
    with TemporaryDirectory() as scratch:
        try:
            return _tried(config, Path(scratch))
        except ModelError as error:
            return _answer(found, trains=False, reason=str(error).split("; ")[0][-160:])
        except bmt_core.BmtError as error:
            return _answer(found, trains=False, reason=str(error).split("; ")[0])
        except Exception as error:
            return _answer(found, trains=None, reason=f"{type(error).__name__}: {error}"[:160])


def _with_experts(config: PretrainedConfig, outline: Any) -> bool | None:
    """True if masks of the experts' gates train, False if not, None if that is not known."""
    if diagnosis_of(outline, WITH_EXPERTS, None).refusal is not None:
        return False
    if sum(p.numel() for p in outline.parameters()) > _MOST_WEIGHTS:
        return None
    with TemporaryDirectory() as scratch:
        try:
            return bool(_tried(config, Path(scratch), WITH_EXPERTS)["trains"])
        except (ModelError, bmt_core.BmtError):
            return False
        except Exception:
            return None


def _outline(config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return architecture_of(config).from_config(config)


def _of_default(kind: str, error: Exception) -> dict[str, Any]:
    """The outcome by the default configuration alone, of which no weights are made."""
    try:
        config = CONFIG_MAPPING[kind]()
        found = diagnosis_of(_outline(config), None, None)
    except Exception:
        return {"trains": None, "reason": f"not built: {type(error).__name__}", "architecture": ""}
    if found.refusal is not None:
        return _answer(found, trains=False, reason=_short(found))
    return _answer(found, trains=None, reason=f"no tiny model: {type(error).__name__}")


def _tried(config: PretrainedConfig, scratch: Path, targets: str | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    base, out = scratch / "base", scratch / "out"
    made = architecture_of(config).from_config(config, dtype=torch.float32)
    made.save_pretrained(base)
    found = diagnose(base, targets)
    if found.refusal is not None:
        return _answer(found, trains=False, reason=found.refusal.split("; ")[0])
    model = load_model(base)
    geometry = dict(bmt_core.geometry(base, ""))
    attached = attach(model, targets, stored=stored_names(model, geometry))
    ids = torch.randint(3, VOCABULARY, (2, _TOKENS))
    prompts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = {**prompts, "use_cache": False}
    initialize(model, attached, [prompts], eta=0.05, mean=0.03, std=0.01, tail=True, seed=0)
    model.train()
    loss = model(**batch, labels=ids).loss
    loss.backward()
    for gate in attached.gates():
        if gate.grad is None or not bool(torch.isfinite(gate.grad).all()):
            raise NotEqual("a gate has no finite gradient")
    if not any(bool(gate.grad.any()) for gate in attached.gates()):
        raise NotEqual("no gate has a gradient")
    model.eval()
    mask = export(attached, base_of(base, base), geometry=geometry)
    write_checkpoint(mask, base, out)
    with torch.no_grad():
        with attached.state.use("hard"):
            hard = model(**batch).logits
        with attached.state.use("off"):
            plain = model(**batch).logits
        applied = load_model(out)(**batch).logits
    if not torch.equal(hard, applied):
        raise NotEqual("the masked model is not the checkpoint with its zeros")
    if torch.equal(hard, plain):
        raise NotEqual("the mask changes nothing")
    return _answer(found, trains=True, reason=None)


def _answer(found: Diagnosis, *, trains: bool | None, reason: str | None) -> dict[str, Any]:
    return {
        "architecture": found.architecture,
        "trains": trains,
        "reason": reason,
        "fused": any(name.endswith("]") for name in found.tensors),
    }


def _short(found: Diagnosis) -> str:
    """The reason why a model is refused, in words that many models share."""
    if len(found.masked):
        return f"{len(found.masked)} of {found.layers} layers have a gate projection"
    reasons = " ".join(found.reasons.values())
    if "experts" in reasons:
        return "experts"
    if "unknown order" in reasons:
        return "gate and up projection are fused in an order that is not known"
    if "another name" in reasons:
        return "a gate under another name"
    return "no gate projection"
