"""Names of a model's parameters in its checkpoint, where transformers loads them under others.

A checkpoint of a multimodal family has `language_model.model.layers.…` where the loaded model has
`model.language_model.layers.…`, or `model.language_model.…` where the text model alone has
`model.…`. Masks name tensors as the checkpoint does.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )
except ImportError:  # a version of transformers that loads every tensor under its own name
    rename_source_key = None


def stored_names(model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """The names in the checkpoint of the model's parameters that are loaded as they are stored.

    tensors: names in the checkpoint. Parameters that transformers makes of several tensors, or of
    a part of one, are left out, because no mask can name them. The renaming is transformers' own
    (5.19, core_model_loading.py, `convert_and_load_state_dict_in_model`).
    """
    own = model.state_dict()
    if rename_source_key is None or not isinstance(model, PreTrainedModel):
        return {name: name for name in tensors if name in own}
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    found = {}
    for tensor in tensors:
        name, pattern = rename_source_key(
            tensor, renamings, converters, model.base_model_prefix, own
        )
        if name not in own and tensor in own:
            name, pattern = tensor, None
        if pattern is None and name in own:
            found[name] = tensor
    return found
