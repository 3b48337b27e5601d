"""Names of a model's parameters in its checkpoint, where transformers loads them under others.

A checkpoint of a multimodal family has `language_model.model.layers.…` where the loaded model has
`model.language_model.layers.…`, or `model.language_model.…` where the text model alone has
`model.…`. Masks name tensors as the checkpoint does.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from bmt_trainer.masking.experts import gate_name, rows_of

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Concatenate,
        MergeModulelist,
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )
except ImportError:  # a version of transformers that loads every tensor under its own name
    rename_source_key = None


def stored_names(model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """The names in the checkpoint of the model's parameters that are loaded as they are stored.

    tensors: names in the checkpoint. Parameters that transformers makes of several tensors, or of
    a part of one, are left out, because no mask can name them; but not the gates of experts that
    it stacks, by their names as in `masking.experts`. The renaming is transformers' own
    (5.19, core_model_loading.py, `convert_and_load_state_dict_in_model`).
    """
    own = model.state_dict()
    if rename_source_key is None or not isinstance(model, PreTrainedModel):
        return {name: name for name in tensors if name in own}
    transforms = get_model_conversion_mapping(model)
    # Patterns of the gate's tensors in converters that stack gate and up projection of experts.
    gates = {t.source_patterns[0] for t in transforms if _stacks_gates(t)}
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    found = {}
    for tensor in tensors:
        name, pattern = rename_source_key(
            tensor, renamings, converters, model.base_model_prefix, own
        )
        if name not in own and tensor in own:
            name, pattern = tensor, None
        if name not in own:
            continue
        if pattern is None:
            found[name] = tensor
            found |= rows_of(name, tensor, own[name])
        elif pattern in gates and (gate := gate_name(name, tensor)) is not None:
            found[gate] = tensor
    return found


def _stacks_gates(transform: object) -> bool:
    """True for a converter of [gate, up] of each expert into one tensor [E, 2 f, d_in]."""
    if not isinstance(transform, WeightConverter) or len(transform.source_patterns) != 2:
        return False
    kinds = [type(operation) for operation in transform.operations]
    if kinds != [MergeModulelist, Concatenate] or transform.operations[1].dim != 1:
        return False
    first = transform.source_patterns[0].removesuffix("$").removesuffix(".weight")
    return first.endswith((".gate_proj", ".w1"))
