"""Metadata of a mask that a run knows at its beginning: refused then, not when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmt_core import BadMetadata
from bmt_core.config import BASE_CONFIG, arithmetic
from bmt_core.mask import MAX_METADATA, dump_metadata

from bmt_trainer.errors import ConfigError

# Bytes for the entries that a run adds: scores, versions, counts, warnings.
_RESERVED = 1 << 13
# Settings that stand in the metadata a second time, under their own name.
_TWICE = ("dataset", "chat_template_kwargs")


def check_metadata(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError for settings that no mask file can hold: too long, or no JSON.

    folder: of the base's checkpoint, of whose configuration the metadata has fields too.
    """
    sizes = {}
    for name, value in settings.items():
        try:
            size = len(dump_metadata({name: value}))
        except BadMetadata as error:
            if error.bound != MAX_METADATA:
                raise ConfigError(
                    f"{name}: the mask's metadata has the run's settings, and cannot have this one "
                    f"({error}); use JSON values and text in UTF-8"
                ) from None
            size = int(str(error.value))
        sizes[name] = size * (1 + (name in _TWICE))
    room = MAX_METADATA - _RESERVED - len(dump_metadata({BASE_CONFIG: arithmetic(folder)}))
    if sum(sizes.values()) > room:
        longest = max(sizes, key=sizes.__getitem__)
        raise ConfigError(
            f"{longest}: {sizes[longest]:,} bytes; the mask's metadata has the run's settings, of "
            f"which {room:,} bytes fit. Shorten it, or move text into the data's rows"
        )
