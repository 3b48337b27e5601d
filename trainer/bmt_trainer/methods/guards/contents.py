"""Digests of what a run depends on besides its settings: a resumed run must find the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.examples import Example, Split
from bmt_trainer.methods.guards.changes import CODE
from bmt_trainer.methods.rollouts.environments import tool_texts
from bmt_trainer.rewards.digests import digest
from bmt_trainer.rewards.specification import JOINED

# Files besides the weights that change what a model computes, or how text becomes tokens.
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json")
_SETTINGS = ("config.json", "generation_config.json")


def of_run(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """A SHA-256 by the name that an error gives it.

    folder: of the checkpoint; settings: of the run, which name rewards, graders and environments.
    """
    found = {
        "training data": digest_of_examples(split.train),
        "held-out data": digest_of_examples(split.heldout),
        "chat template": _of_json(tokenizer.chat_template),
        "tokenizer": _of_files(folder, _TOKENIZER),
        "base's configuration": _of_files(folder, _SETTINGS),
    }
    tools = JOINED.join(tool_texts(settings.get("tools")))
    for setting, name in {**settings, "tools": tools}.items():
        if setting in CODE and name:
            found[setting] = digest(name)
    return found


def digest_of_examples(examples: Iterable[Example]) -> str:
    """SHA-256 of examples in their order, without their locations."""
    sha = hashlib.sha256()
    for example in examples:
        values = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
        del values["location"]  # a file may have moved
        for name in ("rejected", "wanted"):
            if values[name] is None:  # as builds without preferences digested it
                del values[name]
        sha.update(_json(values) + b"\n")
    return sha.hexdigest()


def _of_files(folder: Path, patterns: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for path in sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}):
        sha.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def _of_json(value: Any) -> str:
    return hashlib.sha256(_json(value)).hexdigest()


def _json(value: Any) -> bytes:
    # Lone surrogates stay escaped.
    return json.dumps(value, sort_keys=True, default=_shown).encode()


def _shown(value: Any) -> Any:
    """Dates, bytes and other values of columns that JSON lacks; objects by their type alone."""
    if isinstance(value, Mapping):
        return dict(value)
    shown = repr(value)
    return type(value).__name__ if " at 0x" in shown else shown
