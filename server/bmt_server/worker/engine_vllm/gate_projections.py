"""Gate projections of a model that vLLM loaded, as `GateLayer`s, and the masked delta behind them.

vLLM fuses gate and up projection into one `MergedColumnParallelLinear`
(`model_executor/layers/linear.py`); the gate is the first part of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from bmt_core.gates.geometry import in_tower
from bmt_core.gates.rows import Rows
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from bmt_server.settings import Settings
from bmt_server.worker.gate_layers import GateLayer

# Attribute of a layer that holds a copy of the gate's base rows [R, K], if vLLM repacks the weight.
BASE_GATE = "bmt_base_gate"

#: Rows `first` to `end` - 1 of a gate by its name in masks, [end - first, K], in the model's dtype.
Dequantized = Callable[[str, int, int], torch.Tensor]


class UnsupportedModelError(ValueError):
    """The served model's gate projections do not fit masks; the message names what it has."""


class MaskedLinearMethod(LinearMethodBase):
    """vLLM's matrix product, followed by the masked delta of each token's mask.

    masked_delta: the op on y and x for this layer, see `kernels/masked_delta.py`, `op_for`. Where
    the product quantizes x first (W8A8), the op reads x as it was: what the zeros of a row keep is
    the rounding of their own inputs, `docs/serving/quantized-bases.md`.
    """

    def __init__(
        self,
        inner: LinearMethodBase,
        masked_delta: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> None:
        self.inner = inner
        self.masked_delta = masked_delta

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        self.inner.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        y: torch.Tensor = self.inner.apply(layer, x, bias)
        if x.dim() == 2:
            self.masked_delta(y, x)
        else:  # vLLM's models of transformers' code keep a batch of one before the tokens
            self.masked_delta(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]))
        return y


def is_gate(layer: Any) -> bool:
    """True for vLLM's fused gate and up projection (`MergedColumnParallelLinear`) of text."""
    prefix = getattr(layer, "prefix", "")
    return (
        prefix.endswith(".gate_up_proj")
        and hasattr(layer, "output_partition_sizes")
        and not in_tower(prefix)
    )


def keep_base_rows(layer: Any, rows: torch.Tensor) -> None:
    """Copy the gate's base rows [R, K] into the layer, before vLLM repacks its weight.

    After a reload of the weights, into the tensor that masks read already.
    """
    kept = getattr(layer, BASE_GATE, None)
    if kept is None:
        setattr(layer, BASE_GATE, rows.clone())
    else:
        kept.copy_(rows)


def fused_projections(model: torch.nn.Module) -> list[Any]:
    """All fused gate and up projections of this worker, in the model's order."""
    return [m for m in model.modules() if is_gate(m)]


def checkpoint_names(model: torch.nn.Module, known: Iterable[str]) -> dict[str, str]:
    """The checkpoint's names of gates by the prefixes of vLLM's fused projections.

    known: the checkpoint's gates, each a tensor, or the first rows of one that is fused with the up
    projection there too. A family of several inputs has other names in vLLM than in its checkpoint;
    its class translates them.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    tensors = {}
    for name in known:
        rows = Rows.parse(name)
        if rows is None or rows.first == 0:
            tensors[name if rows is None else rows.tensor] = name
    found = {_fused_prefix(tensor): name for tensor, name in tensors.items()}
    if mapper is not None:
        for tensor, name in tensors.items():
            for mapped in mapper.apply_list([tensor]):
                found.setdefault(_fused_prefix(mapped), name)
    return found


def _fused_prefix(tensor: str) -> str:
    layer = tensor.removesuffix(".weight")
    own = layer.removesuffix(".gate_proj")
    return layer if own == layer else f"{own}.gate_up_proj"


def gate_layer(
    fused: Any,
    names: Mapping[str, str] = MappingProxyType({}),
    known: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    dequantized: Dequantized | None = None,
) -> GateLayer:
    """The gate part of one fused projection, under its name in the checkpoint.

    names: as of `checkpoint_names`; a projection that is not in it has the name that vLLM gives its
    gate. known: shapes of the checkpoint's gates. dequantized: weights of a quantized checkpoint's
    gates, None for one of 16 bits. Raises UnsupportedModelError if vLLM quantized it without that,
    and if vLLM's gate has another number of rows than the checkpoint's.
    """
    if (dequantized is None) != isinstance(fused.quant_method, UnquantizedLinearMethod):
        has, of = ("codes", "weights") if dequantized is None else ("weights", "codes")
        raise UnsupportedModelError(
            f"{fused.prefix} has {has} in vLLM ({type(fused.quant_method).__name__}), and its gate "
            f"has {of} in the checkpoint; serve a checkpoint whose config.json fits its weights"
        )
    parts, rank, ranks = fused.output_partition_sizes, fused.tp_rank, fused.tp_size
    own = fused.prefix.removesuffix("gate_up_proj") + "gate_proj.weight"
    name = names.get(fused.prefix, own)
    count = parts[0]
    if len(parts) == 1 and ranks == 1 and name in known and Rows.parse(name) is not None:
        # vLLM's models of transformers' code keep a fused projection of the checkpoint as one part.
        count = min(count, known[name][0])
    if name in known and count * ranks != known[name][0]:
        fix = "serve it on one rank" if ranks > 1 else "vLLM's class of this model has other gates"
        raise UnsupportedModelError(
            f"{fused.prefix} has {count * ranks} rows of a gate on {ranks} rank"
            f"{'s' if ranks > 1 else ''}, and {name} has {known[name][0]} in the checkpoint; {fix}"
        )
    rows = (rank * count, (rank + 1) * count)
    if dequantized is not None:
        if name not in known:
            raise UnsupportedModelError(f"{fused.prefix} is quantized, and {name} is no gate of it")
        return GateLayer(name, rows, dequantized(name, *rows))
    base = getattr(fused, BASE_GATE, None)
    if base is not None:
        return GateLayer(name, rows, base[:count])
    live = fused.weight.data[:count]
    return GateLayer(name, rows, live, live)


def check_names(gates: Sequence[GateLayer], settings: Settings, pipeline_ranks: int) -> None:
    """Raise UnsupportedModelError unless `gates` are those of the checkpoint.

    With several pipeline ranks a worker holds only some of them.
    """
    known = settings.gates
    missing = [g.name for g in gates if g.name not in known]
    if not gates or missing or (len(gates) != len(known) and pipeline_ranks == 1):
        raise UnsupportedModelError(
            f"vLLM loaded {len(gates)} gate projections and the checkpoint holds {len(known)}"
            + (f"; {missing[0]} is not in the checkpoint" if missing else "")
            + ". Masks need a model whose blocks or experts have a gate projection (Llama, Qwen, "
            "Mistral, Mixtral, Phi and similar)"
        )
