"""Files of a tiny checkpoint's tokenizer and image processor, by transformers' defaults.

    python -m tools.models.processors KIND FOLDER

Nothing is downloaded: processors have defaults for all that their configurations say, and the
tokenizer has a token per byte and one for each that a processor asks its tokenizer for.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from reproduce.tiny import byte_tokenizer

# In the code of processors.
_ASKED = re.compile(r"tokenizer(?:, \"|\.)([a-z_]+_token)\b")
# Tokens that every tokenizer has, or may lack.
_HAS = {f"{name}_token" for name in ("eos", "pad", "bos", "unk", "cls", "sep", "mask")}


def write_processors(kind: str, folder: Path) -> None:
    """Write what a checkpoint of the `model_type` has besides configuration and weights."""
    name = PROCESSOR_MAPPING_NAMES.get(kind)
    made = getattr(transformers, name) if name else None
    source = inspect.getsource(sys.modules[made.__module__]) if made else ""
    asked = {name: f"<{name}>" for name in sorted(set(_ASKED.findall(source)) - _HAS)}
    plain = byte_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        chat_template=plain.chat_template,
        extra_special_tokens=asked,
    )
    tokenizer.save_pretrained(folder)
    images = _of(IMAGE_PROCESSOR_MAPPING_NAMES, kind)
    videos = _of(VIDEO_PROCESSOR_MAPPING_NAMES, kind)
    for part in (videos, images):
        if part is not None:
            part.save_pretrained(folder)
    if made is not None:
        wanted = inspect.signature(made.__init__).parameters
        parts = {"image_processor": images, "video_processor": videos, "tokenizer": tokenizer}
        made(**{key: part for key, part in parts.items() if key in wanted}).save_pretrained(folder)


def _of(names: Any, kind: str) -> Any:
    """The processor of a `model_type` with its defaults, None if there is none."""
    found = names.get(kind)
    if isinstance(found, dict):
        found = found.get("torchvision") or found.get("pil")
    return getattr(transformers, found)() if found else None


if __name__ == "__main__":
    write_processors(sys.argv[1], Path(sys.argv[2]))
