"""transformers' answers of a quantized checkpoint in float32, with a mask's weights set to zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import bmt_core
import torch
from bmt_core.gates.rows import Rows
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from tests.support.quantized.copies import library_weights

#: none: inputs are not quantized. in_place: the masked codes' product with INT8 inputs. corrected:
#: the product with INT8 inputs, less the deleted weights times the inputs as they were.
Inputs = Literal["none", "in_place", "corrected"]


def int8_inputs(x: torch.Tensor) -> torch.Tensor:
    """Inputs as dynamic symmetric quantization by tokens leaves them."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-128, 127) * scale


class _Projection(torch.nn.Module):
    """A projection of dequantized weights, its deleted weights apart."""

    def __init__(self, weight: torch.Tensor, deleted: torch.Tensor, inputs: Inputs) -> None:
        super().__init__()
        self.weight, self.deleted, self.inputs = weight, deleted, inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.inputs == "none":
            return linear(x, self.weight - self.deleted)
        if self.inputs == "in_place":
            return linear(int8_inputs(x), self.weight - self.deleted)
        return linear(int8_inputs(x), self.weight) - linear(x, self.deleted)


def reference(
    base: Path, quantized: Path, kind: str, mask: bmt_core.Mask | None, inputs: Inputs = "none"
) -> Any:
    """The model of a quantized copy of `base`, from which all but the projections is taken."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tensors = load_file(quantized / "model.safetensors")
    zeros = {} if mask is None else {t.name: t for t in mask.tensors}
    names = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    for name in names:
        parts = {
            n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")
        }
        weight = library_weights(kind, parts)
        deleted = torch.zeros_like(weight)
        if (tensor := zeros.get(f"{name}.weight")) is not None:
            assert Rows.parse(tensor.name) is None
            at = torch.from_numpy(tensor.positions.astype("int64"))
            flat = torch.zeros(weight.numel(), dtype=weight.dtype)
            flat[at] = weight.reshape(-1)[at]
            deleted = flat.view(weight.shape)
        model.set_submodule(name, _Projection(weight, deleted, inputs))
    return model


@torch.no_grad()
def log_probabilities(model: Any, sequences: list[list[int]]) -> torch.Tensor:
    """log p of each token given those before it."""
    found = []
    for ids in sequences:
        logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        found.append(logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    return torch.cat(found)
