"""Gates of the experts that vLLM loaded, as `GateLayer`s.

Shapes: E experts of a layer, f features between the projections on this rank, P of them with
padding; K columns. vLLM holds a layer's experts in two tensors (`RoutedExperts`, vLLM 0.32.0,
`model_executor/layers/fused_moe/routed_experts.py`):

    w13 [E, 2 P, K]  gate and up projection of each expert, the gate's rows first
    w2  [E, K, P]    down projection of each expert

Its CPU backend pads both and changes the order of an expert's elements (`experts/cpu_moe.py`), so
the gates' rows are copied before that, and the others are read in the order that was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bmt_core.gates.geometry import expert_of

from bmt_server.worker.engine_vllm.gate_projections import UnsupportedModelError
from bmt_server.worker.gate_layers import GateLayer

# Attributes of a layer of experts: a copy of the gates' base rows [E, f, K], and `Orders`.
_BASE_GATES, _ORDERS = "bmt_base_gates", "bmt_orders"
_BLOCK = 16

#: A matrix [rows, columns] of its elements in some order.
Order = Callable[[torch.Tensor, int, int], torch.Tensor]


def _as_loaded(elements: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return elements.view(rows, columns)


def _by_blocks(elements: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Of blocks of 16 rows, column by column: vLLM's vector kernel."""
    blocks = elements.view(rows // _BLOCK, columns, _BLOCK)
    return blocks.transpose(1, 2).reshape(rows, columns)


def _by_pairs(elements: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Of blocks of 16 rows, two columns at a time: AMX."""
    blocks = elements.view(rows // _BLOCK, columns // 2, _BLOCK, 2)
    return blocks.transpose(1, 2).reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Orders:
    """Orders of the elements of an expert's matrices in w13 and in w2, as `process_weights` left
    them."""

    w13: Order
    w2: Order


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts of one layer with their gates.

    layer: vLLM's; gates: by the expert's number; orders: of the rest of the weights.
    """

    layer: Any
    gates: list[GateLayer]
    orders: Orders

    def up(self, expert: int) -> torch.Tensor:
        """The expert's up projection, [f, K]."""
        w13 = self.layer.w13_weight.data[expert]
        padded = w13.shape[0] // 2
        up = self.orders.w13(w13[padded:].reshape(-1), padded, w13.shape[1])
        return up[: self.gates[expert].shape[0]]

    def down(self, expert: int) -> torch.Tensor:
        """The expert's down projection, [K, f]."""
        w2 = self.layer.w2_weight.data[expert]
        return self.orders.w2(w2.reshape(-1), *w2.shape)[:, : self.gates[expert].shape[0]]


@contextmanager
def kept_gates(layer: Any) -> Iterator[None]:
    """Copy the gates' rows of `layer`, and find the orders that the code inside leaves weights in.

    The code is vLLM's `process_weights_after_loading`. Raises UnsupportedModelError for an unknown
    order, and after a replacement of the weights that vLLM did not put in order again.
    """
    features = layer.w13_weight.shape[1] // 2
    rows = layer.w13_weight.data[:, :features]
    kept = getattr(layer, _BASE_GATES, None)
    if kept is None:
        setattr(layer, _BASE_GATES, rows.clone())
    else:
        # After a reload, into the tensor that masks read already.
        kept.copy_(rows)
    last = layer.w13_weight.shape[0] - 1
    w13 = {e: layer.w13_weight.data[e].clone() for e in (0, last)}
    w2 = {e: layer.w2_weight.data[e].clone() for e in (0, last)}
    yield
    found = Orders(
        _order(layer, "w13_weight", {e: w[features:] for e, w in w13.items()}, half=True),
        _order(layer, "w2_weight", w2),
    )
    setattr(layer, _ORDERS, found)


def _order(
    layer: Any, name: str, loaded: Mapping[int, torch.Tensor], *, half: bool = False
) -> Order:
    """The order in which a weight of the layer has the matrices that were `loaded`, by expert.

    half: they are the second half of the weight's rows.
    """
    weight = getattr(layer, name).data

    def holds(order: Order) -> bool:
        for expert, before in loaded.items():
            own = weight[expert]
            own = own[own.shape[0] // 2 :] if half else own
            try:
                after = order(own.reshape(-1), *own.shape)
            except RuntimeError:  # sizes that this order does not have
                return False
            rows, columns = before.shape
            if not torch.equal(after[:rows, :columns], before):
                return False
        return True

    for order in (_as_loaded, _by_blocks, _by_pairs):
        if holds(order):
            return order
    raise UnsupportedModelError(
        f"{layer.layer_name}: vLLM holds {name} {list(weight.shape)} of its experts in an order "
        "that masks do not know; serve it on a CPU of x86-64, and do not replace its weights"
    )


def expert_layers(
    model: torch.nn.Module, known: Mapping[str, tuple[int, int]]
) -> list[ExpertLayer]:
    """Layers of experts whose gates are in the checkpoint, in the model's order.

    known: shapes of the checkpoint's gates. Raises UnsupportedModelError for experts that are
    shared among ranks, or that compute in another way than gate, activation, up and down.
    """
    names = _names_by_place(model, known)
    found = []
    for layer in model.modules():
        place = getattr(layer, "layer_name", None)
        if not hasattr(layer, "w13_weight") or (place, 0) not in names:
            continue
        _check(layer)
        kept, orders = getattr(layer, _BASE_GATES, None), getattr(layer, _ORDERS, None)
        if kept is None or orders is None:
            raise UnsupportedModelError(f"{place}: vLLM did not load its experts as weights")
        config = layer.moe_config
        gates = []
        for expert, base in enumerate(kept):
            name = names.get((place, expert), f"{place}.{expert}.gate_proj.weight")
            count = base.shape[0]
            if name in known and known[name] != (count * config.tp_size, base.shape[1]):
                raise UnsupportedModelError(
                    f"{place} has {count * config.tp_size} rows of a gate on {config.tp_size} "
                    f"ranks, and {name} has {known[name][0]} in the checkpoint; serve it on one "
                    "rank"
                )
            rows = (config.tp_rank * count, (config.tp_rank + 1) * count)
            gates.append(GateLayer(name, rows, base))
        found.append(ExpertLayer(layer, gates, orders))
    return found


def _names_by_place(
    model: torch.nn.Module, known: Iterable[str]
) -> dict[tuple[str | None, int], str]:
    """Names of experts' gates in the checkpoint, by vLLM's name of the layer and the number."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    found: dict[tuple[str | None, int], str] = {}
    for name in known:
        if (place := expert_of(name)) is None:
            continue
        found[place] = name
        for mapped in mapper.apply_list([name]) if mapper is not None else ():
            if (place := expert_of(mapped)) is not None:
                found.setdefault(place, name)
    return found


#: Activations between gate and up projection, by vLLM's names of them.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
}


def _check(layer: Any) -> None:
    """Raise UnsupportedModelError for experts that `masked_experts.py` would compute otherwise."""
    parallel = layer.moe_config.moe_parallel_config
    config = layer.moe_config
    reasons = {
        "expert parallelism": layer.use_ep or layer.expert_map is not None,
        "expert load balancing": parallel.enable_eplb,
        "data parallelism": config.dp_size > 1 or config.pcp_size > 1,
        "sequence parallelism": parallel.is_sequence_parallel,
        "biases": config.has_bias,
        "a limit of the activation": layer.swiglu_limit is not None,
        "router weights on the input": layer.apply_router_weight_on_input,
        "a kernel that routes": layer.quant_method.is_monolithic,
        f"the activation {layer.activation.value}": layer.activation.value not in ACTIVATIONS,
    }
    if has := [name for name, given in reasons.items() if given]:
        raise UnsupportedModelError(
            f"{layer.layer_name} has {has[0]}, with which masks of experts are not served; "
            "remove its flag, or serve another model"
        )
