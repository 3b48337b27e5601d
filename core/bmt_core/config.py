"""Fields of a base's `config.json` that decide its arithmetic, which the fingerprint leaves out.

The fingerprint covers tensors alone: with another `rms_norm_eps` or another scaling of the rotary
embedding, the same weights are another model. Masks carry the fields of their training as metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Key of the fields in a mask's metadata.
BASE_CONFIG = "base_config"

# Names, and ends of names, of fields that change no output of the forward pass for given tokens, or
# that the shapes of the tensors decide.
_NEUTRAL = {
    *("_name_or_path", "architectures", "auto_map", "transformers_version"),
    *("dtype", "torch_dtype", "use_cache", "initializer_range", "pretraining_tp", "vocab_size"),
    *("hidden_size", "intermediate_size", "max_position_embeddings", "tokenizer_class"),
    *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
    *("problem_type", "is_encoder_decoder", "chunk_size_feed_forward", "transformers_weights"),
}
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
# Characters of JSON from which a value is kept as its digest.
_LONG = 200
_NEUTRAL_ENDS = ("_token_id", "_token_ids", "dropout", "_attn_implementation", "_internal")


def arithmetic(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a checkpoint's `config.json` that may decide its arithmetic, by dotted name.

    A field that this module does not know is among them. Both spellings of the rotary embedding
    (`rope_theta` and `rope_scaling`, `rope_parameters`) give the same. Empty without a readable
    file.
    """
    try:
        text = (Path(checkpoint) / "config.json").read_text(encoding="utf-8")
        # NaN and infinity as text, because a mask's metadata has no such numbers.
        config = json.loads(text, parse_constant=str, object_hook=_untagged)
        return dict(_fields(config)) if isinstance(config, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _untagged(value: dict[str, Any]) -> Any:
    """An object of a configuration; the number's name for one that stands for NaN or infinity.

    transformers 5 saves such numbers as `{"__float__": "Infinity"}`, and earlier ones as they are.
    """
    return value["__float__"] if value.keys() == {"__float__"} else value


def _fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a configuration and of those in it, under dotted names."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping):
        rope = dict(rope)
        if "type" in rope:
            rope.setdefault("rope_type", rope.pop("type"))
        if config.get("rope_theta") is not None:
            rope.setdefault("rope_theta", config["rope_theta"])
        yield from ((f"{prefix}rope.{name}", value) for name, value in rope.items())
    for name, value in config.items():
        if name in _NEUTRAL or name in _ROPE or name.endswith(_NEUTRAL_ENDS):
            continue
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _short(value)


def _short(value: Any) -> Any:
    """A value, or the digest of one that would fill a mask's metadata: a list of all layers."""
    text = json.dumps(value, sort_keys=True)
    if len(text) <= _LONG:
        return value
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def config_warning(metadata: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """A line for a mask whose training had another arithmetic than a checkpoint, else None.

    metadata: of the mask; one without the fields of its training is not judged. found:
    `arithmetic` of the checkpoint.
    """
    trained = metadata.get(BASE_CONFIG)
    if not isinstance(trained, Mapping) or not trained or not found:
        return None
    changed = [
        f"{_name(name)} {_shown(trained, name)} (here {_shown(found, name)})"
        for name in sorted(trained.keys() | found.keys())
        if not _same(trained.get(name), found.get(name))
    ]
    if not changed:
        return None
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return (
        f"warning: the mask was trained with {', '.join(changed[:5])}{more} in config.json: the "
        "weights are the same, their arithmetic is not; restore the file of the training"
    )


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (_unset(a) and _unset(b))


def _unset(value: Any) -> bool:
    """True for a value that says the same as an absent field; 0 is a number."""
    return value is None or value is False or value == "default"


def _name(name: str) -> str:
    """A field's name, from a file that anyone may have written, without control characters."""
    return json.dumps(name)[1:-1][:60]


def _shown(fields: Mapping[str, Any], name: str) -> str:
    text = json.dumps(fields[name], default=str) if name in fields else "absent"
    return text if len(text) <= 60 else f"{text[:57]}…"
